/** Whether something runs once a transaction is stored, or once it is undone. */
export type After = 'afterCommit' | 'afterRollback'

interface Registered { readonly on: After, readonly fn: () => unknown, depth: number }

/** What runs behind the transactions of one lease: each function at most once. */
export class Aftermath {
  readonly #run: (fn: () => unknown, on: After) => void
  #registered: Registered[] = []

  constructor (run: (fn: () => unknown, on: After) => void) {
    this.#run = run
  }

  /** @param depth of the transaction that it belongs to; 0: the outermost */
  add (depth: number, on: After, fn: () => unknown): void {
    this.#registered.push({ depth, on, fn })
  }

  /** Nothing is stored before the outermost transaction is: what belonged to one within it is the outer one's now. */
  committed (depth: number): void {
    if (depth === 0) return this.#end(0, 'afterCommit')
    for (const one of this.#registered) one.depth = Math.min(one.depth, depth - 1)
  }

  rolledBack (depth: number): void {
    this.#end(depth, 'afterRollback')
  }

  /** Nobody knows what became of the outermost transaction: neither is true. */
  unknown (): void {
    this.#registered = []
  }

  #end (depth: number, on: After): void {
    const ended = this.#registered.filter((one) => one.depth >= depth)
    this.#registered = this.#registered.filter((one) => one.depth < depth)
    for (const one of ended) if (one.on === on) this.#run(one.fn, on)
  }
}
