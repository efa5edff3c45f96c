/** Leases that their borrowers give back as soon as somebody else waits, each by the function that does so. */
export class Lendable {
  /** The oldest first. */
  readonly #all = new Set<() => boolean>()

  get size (): number {
    return this.#all.size
  }

  /**
   * @param recall gives the lease back now and returns true, or returns false where that can not be (any more)
   * @returns its own undo
   */
  add (recall: () => boolean): () => void {
    this.#all.add(recall)
    return () => { this.#all.delete(recall) }
  }

  /** Recalls one lease, the oldest that can be. False: there is none. */
  recall (): boolean {
    for (const recall of this.#all) {
      if (!recall()) continue
      this.#all.delete(recall)
      return true
    }
    return false
  }
}
