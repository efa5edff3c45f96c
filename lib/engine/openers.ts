interface Opener { readonly target: number, readonly resolve: () => void, readonly reject: (error: Error) => void }

/** Callers of `open()`: each waits until there is a number of connections. */
export class Openers {
  #all: Opener[] = []

  get size (): number {
    return this.#all.length
  }

  /** The highest number that any of them waits for. */
  get target (): number {
    return this.#all.reduce((most, { target }) => Math.max(most, target), 0)
  }

  join (target: number): Promise<void> {
    return new Promise((resolve, reject) => { this.#all.push({ target, resolve, reject }) })
  }

  /** Removes those whose number is reached, and returns what resolves their promises. */
  take (here: number, max: number): Array<() => void> {
    const ready = this.#all.filter(({ target }) => here >= Math.min(target, max))
    this.#all = this.#all.filter((opener) => !ready.includes(opener))
    return ready.map(({ resolve }) => resolve)
  }

  reject (why: () => Error): void {
    for (const { reject } of this.#all.splice(0)) reject(why())
  }
}
