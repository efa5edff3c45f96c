import type { Engine } from '../engine/engine.js'

/** One of the pools that share a budget. */
export interface Member<C> {
  readonly name: string
  readonly engine: Engine<C>
  /** Its connections at most. */
  readonly max: number
  /**
   * It is asked how it is, again and again: its last connection is not taken from it, since the next question would
   * take one back.
   */
  readonly keepsLast: boolean
}

/** What one of them would have if it could. */
interface Claim<C> { readonly member: Member<C>, readonly total: number, readonly wants: number }

/**
 * One `max` for several pools, at every moment. Who needs a connection where there is no room for one gets that of a
 * pool which does not use it; where all are used, those who have two more than it, or need theirs no longer, give up
 * one each time one comes back. So nobody starves, and nothing goes to and fro.
 */
export class Budget<C> {
  #max = Infinity
  #lastId = 0
  readonly #members: Array<Member<C>> = []
  /** Those who were told, when they last asked, that there is no room. */
  readonly #refused = new Set<Member<C>>()
  #offering = false
  /** It was made smaller, and there may be more than it allows. */
  #shrunk = false

  /** The next connection's id: unique among all members. */
  nextId (): number {
    return ++this.#lastId
  }

  join (member: Member<C>): void {
    this.#members.push(member)
  }

  get max (): number {
    return this.#max
  }

  set max (max: number) {
    this.#shrunk ||= max < this.#max
    this.#max = max
  }

  /** After `max`, of the budget or of members, was changed. */
  settle (): void {
    while (this.#sum.staying > this.#max && this.#shed()) { /* One at a time: each changes the sums. */ }
    this.freed()
  }

  get hasRoom (): boolean {
    return this.#sum.total < this.#max
  }

  /** A member needs one more: those with a better claim come first, and where there is no room the others make some. */
  wants (member: Member<C>): void {
    this.#offer(member)
    if (this.hasRoom) {
      this.#refused.delete(member)
      return
    }
    this.#refused.add(member)
    while (this.#missing > 0 && this.#shed(member)) { /* As above. What wakes it up meanwhile creates by itself. */ }
  }

  /**
   * Whoever has less, and was refused, comes first. It may be unable to use it now (its creates fail, and it waits):
   * then it is not kept for it.
   */
  #offer (member: Member<C>): void {
    if (this.#offering || this.#refused.size === 0) return
    const { entries: { coming, total }, line } = member.engine
    const idly = line.size <= coming
    this.#offering = true
    try {
      for (const claim of this.#claims) {
        if (claim.member !== member && (idly || claim.total < total)) this.#ask(claim.member)
      }
    } finally {
      this.#offering = false
    }
  }

  /** A member's connection is ready: whether it must be closed so that another member can make one. */
  mustYield (member: Member<C>): boolean {
    if (this.#shrunk) {
      const { total, staying } = this.#sum
      this.#shrunk = total > this.#max
      if (staying > this.#max) return true
    }
    if (this.#refused.size === 0 || this.#missing === 0) return false
    const { entries: { total }, line } = member.engine
    if (line.size === 0 && this.#isSpare(member)) return this.#claims.some((claim) => claim.member !== member)
    return this.#claims.some((claim) => total > claim.total + 1)
  }

  /** A connection is gone, or late: there may be room. */
  freed (): void {
    const claiming = this.#claims.map(({ member }) => member)
    // Last, who would only like to have as many as its `min`.
    for (const member of new Set([...claiming, ...this.#refused])) this.#ask(member)
  }

  /**
   * There is room again: whoever can't use it now does not come for it, and has no claim to what others have until it
   * does.
   */
  #ask (member: Member<C>): void {
    if (!this.hasRoom) return
    this.#refused.delete(member)
    member.engine.pump()
  }

  /** Those with the fewest first. */
  get #claims (): Array<Claim<C>> {
    return [...this.#refused].map((member) => {
      const { entries: { total, coming }, line, supply } = member.engine
      // While the circuit is not closed one is made to see whether it can be: nobody waits for that.
      const isClosed = supply.creator.circuit.state === 'closed'
      return { member, total, wants: isClosed ? Math.min(line.size - coming, member.max - total) : 1 - coming }
    }).filter(({ wants }) => wants > 0).sort((a, b) => a.total - b.total)
  }

  /** How many more must go, besides those that are about to. */
  get #missing (): number {
    const { total, leaving } = this.#sum
    const wanted = this.#claims.reduce((sum, { wants }) => sum + wants, 0)
    return Math.max(0, wanted - leaving - Math.max(0, this.#max - total))
  }

  get #sum (): { readonly total: number, readonly leaving: number, readonly staying: number } {
    const sum = { total: 0, leaving: 0, staying: 0 }
    for (const { engine: { entries: { coming, here, total } }, max } of this.#members) {
      sum.total += total
      sum.leaving += total - here - coming
      // What is more than its own `max`, it closes by itself as it comes back.
      sum.staying += Math.min(here + coming, max)
    }
    return sum
  }

  #isSpare ({ engine, keepsLast }: Member<C>): boolean {
    return !keepsLast || engine.entries.here > 1
  }

  /** Closes an idle connection of whoever has most. False: there is none. */
  #shed (except?: Member<C>): boolean {
    const [most] = this.#members
      .filter((member) => member !== except && (except === undefined || this.#isSpare(member)))
      .map(({ engine }) => engine)
      .filter(({ entries: { idle } }) => idle.length > 0)
      .sort((a, b) => b.entries.total - a.entries.total)
    return most !== undefined && most.shed()
  }
}
