/**
 * The properties of one driver's object. At the reset those go that a borrower has added, and methods that it has
 * replaced are put back.
 *
 * What a driver keeps on its object changes as it works, so values that are no functions are left alone, and names that
 * begin with '_' are taken for the driver's.
 */
export class Properties {
  readonly #object: Record<string, unknown>
  readonly #names: Set<string>
  readonly #methods: ReadonlyArray<readonly [name: string, method: unknown]>
  #count: number
  #last: string | undefined

  /**
   * @param object as the first borrower finds it: with what `onConnect` and `wrap` have added
   * @param later names that the driver adds as it works
   * @param hidden names of methods that are not enumerable
   */
  constructor (object: object, later: readonly string[] = [], hidden: readonly string[] = []) {
    this.#object = object as Record<string, unknown>
    const names = Object.keys(object)
    this.#names = new Set([...names, ...later, ...hidden])
    this.#methods = [...names, ...hidden]
      .filter((name) => typeof this.#object[name] === 'function')
      .map((name) => [name, this.#object[name]])
    this.#count = names.length
    this.#last = names.at(-1)
  }

  /** Whether a borrower has added or replaced any. */
  get changed (): boolean {
    const names = Object.keys(this.#object)
    // A name that was added is the last one.
    if (names.length !== this.#count || names.at(-1) !== this.#last) {
      if (names.some((name) => this.#isAdded(name))) return true
      this.#count = names.length
      this.#last = names.at(-1)
    }
    for (const [name, method] of this.#methods) if (this.#object[name] !== method) return true
    return false
  }

  /** @throws where a property can't be removed or set */
  restore (): void {
    // The last first: an object from which others are removed becomes slow.
    for (const name of Object.keys(this.#object).reverse()) if (this.#isAdded(name)) delete this.#object[name]
    for (const [name, method] of this.#methods) if (this.#object[name] !== method) this.#object[name] = method
  }

  #isAdded (name: string): boolean {
    return !this.#names.has(name) && !name.startsWith('_')
  }
}
