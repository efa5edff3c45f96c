import type { Submittable } from 'pg'
import type { Client } from '../../../types/drivers.js'
import type { Driver, Wire } from './wire.js'

/** What the query that undoes asks of its session. */
interface UndoSite {
  readonly connection: Client
  /**
   * What is to be sent, now that all that came before is answered. Empty: it was sent, and its answer will come.
   * undefined: nothing.
   */
  undoing (): Buffer | undefined
  undone (): void
  /** Ends the connection at once. */
  cut (): void
}

/** The reset of one connection, used again and again. */
export interface Undo {
  /** Resolves when the server has undone it all. */
  begin (): Promise<void>
  send (): void
  handleError (error: Error): void
}

type Result = { command: string } | Array<{ command: string }>
type Callback = (error: Error | null | undefined, result?: Result) => void

type StepClass = new (decide: () => string | Error, callback: Callback) =>
{ readonly completed: number, submit (): void }

/** Our queries. They extend the driver's own class: in some modes it takes no others. */
export interface OwnQueries {
  readonly Undo: new (site: UndoSite) => Undo
  /** A statement whose text is decided when its turn comes. */
  readonly Step: StepClass
  /** Whether the driver's own class reads the answers to a query. Others may read the socket by themselves. */
  isPlain (query: object): boolean
}

export function ownQueries (driver: Driver): OwnQueries {
  const Query = driver.Query as unknown as QueryClass
  return { Undo: undoClass(Query), Step: stepClass(Query), isPlain: (query) => query instanceof Query }
}

/** What a query of ours is refused with where there is nothing to send. That is no failure. */
export const nothingToDo = new Error('nothing to do')

/** What is used of pg's queries. */
interface Query {
  text: string
  callback: Callback | undefined
  submit (wire: Wire): Error | null
  handleRowDescription (): void
  handleDataRow (): void
  handleCommandComplete (message: object, wire: Wire): void
  handleReadyForQuery (): void
  handleError (error: Error): void
}

type QueryClass = new (text: string, values?: undefined, callback?: Callback) => Query

interface Settle { readonly resolve: () => void, readonly reject: (error: Error) => void }

/** The reset is one query that is sent at each return, so it goes without all that makes a query expensive. */
function undoClass (Base: QueryClass): OwnQueries['Undo'] {
  return class UndoQuery extends Base implements Undo {
    readonly #site: UndoSite
    #settle: Settle | undefined

    constructor (site: UndoSite) {
      super('')
      this.#site = site
    }

    begin (): Promise<void> {
      return new Promise((resolve, reject) => { this.#settle = { resolve, reject } })
    }

    send (): void {
      // pg before 8.19 calls `callback`, with `query_timeout`, whether there is one or not.
      this.callback = unheard
      this.#site.connection.query(this as unknown as Submittable)
    }

    override submit (wire: Wire): Error | null {
      const message = this.#site.undoing()
      if (message === undefined) return nothingToDo
      if (message.length > 0) wire.stream.write(message)
      return null
    }

    override handleRowDescription (): void {}
    override handleDataRow (): void {}
    override handleCommandComplete (): void {}

    override handleReadyForQuery (): void {
      this.#site.undone()
      this.#end()?.resolve()
    }

    override handleError (error: Error): void {
      const settle = this.#end(error)
      if (settle === undefined) return
      if (error === nothingToDo) return settle.resolve()
      // Otherwise the queries behind it would be sent on a connection that is not clean.
      this.#site.cut()
      settle.reject(error)
    }

    #end (error?: Error): Settle | undefined {
      // With `query_timeout` pg puts a function here that ends its timer.
      this.callback?.(error)
      this.callback = undefined
      const settle = this.#settle
      this.#settle = undefined
      return settle
    }
  }
}

function stepClass (Base: QueryClass): OwnQueries['Step'] {
  class StepQuery extends Base {
    /** How many of its commands have completed. */
    completed = 0
    readonly #decide: () => string | Error

    constructor (decide: () => string | Error, callback: Callback) {
      super('', undefined, callback)
      this.#decide = decide
    }

    override submit (wire: Wire): Error | null {
      const decided = this.#decide()
      if (decided instanceof Error) return decided
      this.text = decided
      return super.submit(wire)
    }

    override handleCommandComplete (message: object, wire: Wire): void {
      this.completed++
      super.handleCommandComplete(message, wire)
    }
  }
  return StepQuery as unknown as StepClass
}

function unheard (): void {}
