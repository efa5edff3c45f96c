/**
 * Requests that are looked at once, in the next turn of the event loop: one look for all of a turn.
 *
 * Its two arrays are kept. A new array for each turn is what V8 comes to allocate in old space, where it would keep the
 * requests of its turn until the next full collection.
 */
export class Turn<T> {
  readonly #look: (item: T) => void
  #coming: T[] = []
  #looked: T[] = []
  readonly #run = () => {
    const items = this.#coming
    this.#coming = this.#looked
    this.#looked = items
    for (const item of items) this.#look(item)
    items.length = 0
  }

  constructor (look: (item: T) => void) {
    this.#look = look
  }

  add (item: T): void {
    if (this.#coming.push(item) === 1) setImmediate(this.#run)
  }
}
