import type { Balance } from '../../types/options.js'

export const balances = ['weighted', 'round-robin', 'least-used', 'random'] as const satisfies readonly Balance[]

export interface Candidate {
  /** Its share beside the others. */
  readonly weight: number
  /** Leases, and those who wait for one. */
  readonly busy: number
  /** What it is owed; only `Choice` touches it. */
  credit: number
}

/** Whose turn it is. */
export class Choice<T extends Candidate> {
  readonly #balance: Balance
  readonly #random: () => number

  constructor (balance: Balance, random: () => number) {
    this.#balance = balance
    this.#random = random
  }

  /** The next one among these, of which there is one at least. Nothing changes by asking. */
  next (among: readonly T[]): T {
    if (this.#balance === 'random') return this.#drawn(among)
    let best = among[0]!
    for (const one of among) if (this.#isBefore(one, best)) best = one
    return best
  }

  /** It was the turn of one of these: each earns its weight, and it pays for all. So, over time, each is taken as often as its weight says, evenly mixed. */
  took (taken: T, among: readonly T[]): void {
    const all = among.reduce((sum, one) => sum + this.#weight(one), 0)
    // Who could not be taken for long is not owed all of that: it would be flooded.
    for (const one of among) one.credit = Math.min(all, one.credit + this.#weight(one))
    taken.credit = Math.max(-all, taken.credit - all)
  }

  #isBefore (one: T, other: T): boolean {
    if (this.#balance === 'least-used') {
      const [mine, its] = [one.busy / one.weight, other.busy / other.weight]
      if (mine !== its) return mine < its
    }
    return one.credit + this.#weight(one) > other.credit + this.#weight(other)
  }

  #weight ({ weight }: T): number {
    return this.#balance === 'round-robin' ? 1 : weight
  }

  #drawn (among: readonly T[]): T {
    let point = this.#random() * among.reduce((sum, { weight }) => sum + weight, 0)
    return among.find(({ weight }) => (point -= weight) < 0) ?? among.at(-1)!
  }
}
