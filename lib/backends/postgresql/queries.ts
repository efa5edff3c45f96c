import type { Submittable } from 'pg'
import type { Driver, Wire } from './wire.js'
import { Guard } from './session.js'

type Callback = (error: Error | null | undefined, result?: { command: string } | Array<{ command: string }>) => void

interface Submitted {
  text: string
  callback: Callback | undefined
  submit (wire: Wire): Error | null
  handleRowDescription (): void
  handleDataRow (): void
  handleCommandComplete (message: object, wire: Wire): void
  handleReadyForQuery (): void
  handleError (error: Error): void
}

export interface Undo {
  /** Resolves when the server has undone it all. */
  begin (): Promise<void>
  send (): void
  handleError (error: Error): void
}

type Step = new (decide: () => string | Error, callback: Callback) => { readonly completed: number, submit (): void }

export interface OwnQueries { readonly Undo: new (guard: Guard) => Undo, readonly Step: Step }

/** Of the driver's own class: in some modes it takes no others. */
export function ownQueries (driver: Driver): OwnQueries {
  const Query = driver.Query as unknown as new (text: string, values?: undefined, callback?: Callback) => Submitted

  /** The reset, used again and again, and without what makes a query dear. */
  class UndoQuery extends Query implements Undo {
    readonly #guard: Guard
    #resolve: (() => void) | undefined
    #reject: ((error: Error) => void) | undefined

    constructor (guard: Guard) {
      super('')
      this.#guard = guard
    }

    begin (): Promise<void> {
      return new Promise((resolve, reject) => {
        this.#resolve = resolve
        this.#reject = reject
      })
    }

    send (): void {
      // pg before 8.19 calls it, with `query_timeout`, whether there is one or not.
      this.callback = unheard
      this.#guard.client.query(this as unknown as Submittable)
    }

    override submit (wire: Wire): Error | null {
      const message = this.#guard.undoing()
      if (message === undefined) return nothingToDo
      wire.stream.write(message)
      return null
    }

    override handleRowDescription (): void {}
    override handleDataRow (): void {}
    override handleCommandComplete (): void {}

    override handleReadyForQuery (): void {
      this.#guard.undone()
      this.#settle()?.resolve()
    }

    override handleError (error: Error): void {
      const settle = this.#settle(error)
      if (settle === undefined) return
      if (error === nothingToDo) return settle.resolve()
      // Else what is queued behind it would go out on a connection that is not clean.
      this.#guard.cut()
      settle.reject(error)
    }

    #settle (error?: Error): { resolve: () => void, reject: (error: Error) => void } | undefined {
      // With `query_timeout` it ends a timer.
      this.callback?.(error)
      this.callback = undefined
      if (this.#resolve === undefined || this.#reject === undefined) return undefined
      const settle = { resolve: this.#resolve, reject: this.#reject }
      this.#resolve = this.#reject = undefined
      return settle
    }
  }

  /** A text that is decided when its turn comes. */
  class StepQuery extends Query {
    /** How many of its commands have. */
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

  return { Undo: UndoQuery, Step: StepQuery as unknown as Step }
}

function unheard (): void {}

/** What a statement is refused with where that is right. */
export const nothingToDo = new Error('nothing to do')
