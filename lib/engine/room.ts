import type { Parts } from './parts.js'

/**
 * A room of the engine. It has the parts that all rooms share; what else it asks of the engine, its `Site` says.
 *
 * Its fields are declared, not defined: else they would first be `undefined`, and V8 could not rely on their types. An
 * acquire that waits would take a fifth longer.
 */
export abstract class Room<C, Site extends Parts<C>> implements Parts<C> {
  declare readonly options: Parts<C>['options']
  declare readonly backend: Parts<C>['backend']
  declare readonly owner: Parts<C>['owner']
  declare readonly entries: Parts<C>['entries']
  declare readonly line: Parts<C>['line']
  declare readonly work: Parts<C>['work']
  declare readonly time: Parts<C>['time']
  declare readonly events: Parts<C>['events']
  declare readonly books: Parts<C>['books']
  declare protected readonly site: Site

  constructor (site: Site) {
    this.site = site
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

  /** Asked each time: a pool gets another name where an app adds it under one. */
  get name (): string {
    return this.site.name
  }
}
