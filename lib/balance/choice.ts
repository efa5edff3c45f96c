import type { Balance } from '../../types/options.js'

export const balances = ['weighted', 'round-robin', 'least-used', 'random'] as const satisfies readonly Balance[]

export interface Candidate {
  /** The share of the candidate beside the others. */
  readonly weight: number
  /** Connections that are lent, and callers that wait for one. */
  readonly busy: number
  /** What the candidate is owed in smooth weighted round robin. Only `Choice` changes it. */
  credit: number
}

/** Chooses the next candidate: smooth weighted round robin, least used, or random. */
export class Choice<T extends Candidate> {
  readonly #balance: Balance
  readonly #random: () => number

  constructor (balance: Balance, random: () => number) {
    this.#balance = balance
    this.#random = random
  }

  /** The next one of these, of which there is at least one. A question: it changes nothing. */
  next (among: readonly T[]): T {
    if (this.#balance === 'random') return this.#drawn(among)
    let best = among[0]!
    for (const one of among) if (this.#isBefore(one, best)) best = one
    return best
  }

  /**
   * One of these was taken: each earns its weight, and the taken one pays the sum. So each is taken as often as its
   * weight says, evenly mixed (smooth weighted round robin).
   */
  took (taken: T, among: readonly T[]): void {
    const all = among.reduce((sum, one) => sum + this.weightOf(one), 0)
    // Bounded: a candidate that could not be taken for long would get all of the next leases.
    for (const one of among) one.credit = Math.min(all, one.credit + this.weightOf(one))
    taken.credit = Math.max(-all, taken.credit - all)
  }

  #isBefore (one: T, other: T): boolean {
    if (this.#balance === 'least-used') {
      const [mine, its] = [one.busy / one.weight, other.busy / other.weight]
      if (mine !== its) return mine < its
    }
    return one.credit + this.weightOf(one) > other.credit + this.weightOf(other)
  }

  /** Its share beside the others. */
  weightOf ({ weight }: T): number {
    return this.#balance === 'round-robin' ? 1 : weight
  }

  #drawn (among: readonly T[]): T {
    let point = this.#random() * among.reduce((sum, { weight }) => sum + weight, 0)
    return among.find(({ weight }) => (point -= weight) < 0) ?? among.at(-1)!
  }
}
