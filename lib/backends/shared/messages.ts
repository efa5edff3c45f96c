import type { Messages, Queued, Unsubscribe } from '../../../types/messages.js'

/** What a queue asks of its subscription. */
interface Source {
  /** Resolves when the server sends the channel. */
  readonly subscribed: Promise<void>
  stop: Unsubscribe
}

const over = Object.freeze({ done: true, value: undefined })

/** The messages of one subscription that wait for their reader: at most `limit`, then the oldest are dropped. */
export class MessageQueue<M extends object> implements Messages<M> {
  dropped = 0
  readonly #limit: number
  readonly #source: Source
  readonly #tellDropped: (first: boolean) => void
  #queue: M[] = []
  /** The first of `#queue` that was not read. */
  #head = 0
  /** Dropped since the last read: right before the first of the queue, since the oldest are dropped. */
  #gap = 0
  /** Reads that wait for a message. The queue is empty then. */
  readonly #readers: Array<(result: IteratorResult<Queued<M>, undefined>) => void> = []
  /** Why there is no subscription, until somebody was told. */
  #failure: { readonly error: unknown } | undefined
  #ended = false

  /**
   * @param begin subscribes: what comes is given to `deliver`; `ended` is called when it is over, and `now` where
   * nothing more is to be read
   * @param tellDropped called for each message that is dropped; `first`: none was since the last read
   */
  constructor (
    limit: number, begin: (deliver: (message: M) => void, ended: (now: boolean) => void) => Source,
    tellDropped: (first: boolean) => void
  ) {
    this.#limit = limit
    this.#tellDropped = tellDropped
    this.#source = begin((message) => { this.#deliver(message) }, (now) => { this.#end(now) })
    this.#source.subscribed.catch((error: unknown) => {
      this.#failure = { error }
      this.#end(true)
    })
  }

  async ready (): Promise<void> {
    try {
      await this.#source.subscribed
    } finally {
      this.#failure = undefined
    }
  }

  async next (): Promise<IteratorResult<Queued<M>, undefined>> {
    if (this.#head < this.#queue.length) return { done: false, value: this.#take() }
    if (this.#ended) return await this.#last()
    const result = await new Promise<IteratorResult<Queued<M>, undefined>>((resolve) => { this.#readers.push(resolve) })
    return result.done === true ? await this.#last() : result
  }

  async return (): Promise<IteratorReturnResult<undefined>> {
    this.#failure = undefined
    this.#end(true)
    await this.#source.stop()
    return over
  }

  [Symbol.asyncIterator] (): this {
    return this
  }

  async [Symbol.asyncDispose] (): Promise<void> {
    await this.return()
  }

  #deliver (message: M): void {
    if (this.#ended) return
    const reader = this.#readers.shift()
    if (reader !== undefined) return reader({ done: false, value: this.#told(message) })
    this.#queue.push(message)
    if (this.#queue.length - this.#head <= this.#limit) return
    this.#forget()
    this.dropped++
    this.#gap++
    this.#tellDropped(this.#gap === 1)
  }

  #take (): Queued<M> {
    const message = this.#queue[this.#head]!
    this.#forget()
    return this.#told(message)
  }

  #told (message: M): Queued<M> {
    const dropped = this.#gap
    this.#gap = 0
    return { ...message, dropped }
  }

  /** Removes the oldest. To shift a long array each time would cost more than all else. */
  #forget (): void {
    this.#head++
    if (this.#head < 256 || this.#head * 2 < this.#queue.length) return
    this.#queue = this.#queue.slice(this.#head)
    this.#head = 0
  }

  async #last (): Promise<IteratorReturnResult<undefined>> {
    const failure = this.#failure
    this.#failure = undefined
    if (failure !== undefined) throw failure.error
    return over
  }

  #end (now: boolean): void {
    this.#ended = true
    if (now) {
      this.#queue = []
      this.#head = 0
    }
    for (const reader of this.#readers.splice(0)) reader(over)
  }
}
