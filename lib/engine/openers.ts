interface Opener {
  readonly target: number
  /** It is told of by an event, as the calls of `open()` are. */
  readonly isTold: boolean
  readonly resolve: () => void
  readonly reject: (error: Error) => void
}

/** Callers of `open()`, and what makes the pool grow: each waits until there is a number of connections. */
export class Openers {
  #all: Opener[] = []

  get size (): number {
    return this.#all.length
  }

  /** The highest number that any of them waits for. */
  get target (): number {
    return this.#all.reduce((most, { target }) => Math.max(most, target), 0)
  }

  join (target: number, isTold = true): Promise<void> {
    return new Promise((resolve, reject) => { this.#all.push({ target, isTold, resolve, reject }) })
  }

  /** Removes those whose number is reached, and returns them. */
  take (here: number, max: number): Opener[] {
    const ready = this.#all.filter(({ target }) => here >= Math.min(target, max))
    this.#all = this.#all.filter((opener) => !ready.includes(opener))
    return ready
  }

  reject (why: () => Error): void {
    for (const { reject } of this.#all.splice(0)) reject(why())
  }
}
