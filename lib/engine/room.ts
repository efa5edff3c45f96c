import type { Parts } from './parts.js'

/** A room of the engine. It has the parts that all rooms share; what else it asks of the engine, its `Site` says. */
export abstract class Room<C, Site extends Parts<C>> implements Parts<C> {
  readonly name: Parts<C>['name']
  readonly options: Parts<C>['options']
  readonly backend: Parts<C>['backend']
  readonly owner: Parts<C>['owner']
  readonly entries: Parts<C>['entries']
  readonly line: Parts<C>['line']
  readonly work: Parts<C>['work']
  readonly time: Parts<C>['time']
  readonly events: Parts<C>['events']
  readonly books: Parts<C>['books']
  protected readonly site: Site

  constructor (site: Site) {
    this.site = site
    this.name = site.name
    this.options = site.options
    this.backend = site.backend
    this.owner = site.owner
    this.entries = site.entries
    this.line = site.line
    this.work = site.work
    this.time = site.time
    this.events = site.events
    this.books = site.books
  }
}
