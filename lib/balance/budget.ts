import type { Engine } from '../engine/engine.js'

/** One of the targets that share a budget. */
export interface Member<C> {
  readonly name: string
  readonly engine: Engine<C>
  /** The most connections that it may have. */
  readonly max: number
  /**
   * The target is asked what it is, again and again. Its last connection is not taken from it: the next question would
   * need a new one.
   */
  readonly keepsLast: boolean
}

/** How many connections a member wants beyond what it has. */
interface Claim<C> { readonly member: Member<C>, readonly total: number, readonly wants: number }

/**
 * One `max` for several targets, at every moment. A target that needs a connection where there is no room gets the room
 * of an idle connection of another target. Where none is idle, a target that has at least two more, or does not need
 * its connections any more, gives up one each time one comes back. So no target starves, and no connections are closed
 * and created in turns.
 */
export class Budget<C> {
  #max = Infinity
  #lastId = 0
  readonly #members: Array<Member<C>> = []
  /** Members that found no room when they last asked. */
  readonly #refused = new Set<Member<C>>()
  #offering = false
  /** `max` was made smaller, and there may be more connections than that. */
  #shrunk = false

  /** The next connection's id: unique among all members. */
  nextId (): number {
    return ++this.#lastId
  }

  join (member: Member<C>): void {
    this.#members.push(member)
  }

  /** A member has no connection any more. */
  leave (member: Member<C>): void {
    this.#members.splice(this.#members.indexOf(member), 1)
    this.#refused.delete(member)
    this.freed()
  }

  get max (): number {
    return this.#max
  }

  set max (max: number) {
    this.#shrunk ||= max < this.#max
    this.#max = max
  }

  /** To be called after `max` of the budget or of a member was changed. */
  settle (): void {
    while (this.#sum.staying > this.#max && this.#shed()) { /* One at a time: each changes the sums. */ }
    this.freed()
  }

  get hasRoom (): boolean {
    return this.#sum.total < this.#max
  }

  /**
   * A member needs one more. Members with a better claim get theirs first; where there is no room, others make some.
   */
  wants (member: Member<C>): void {
    this.#offer(member)
    if (this.hasRoom) {
      this.#refused.delete(member)
      return
    }
    this.#refused.add(member)
    while (this.#missing > 0 && this.#shed(member)) { /* One at a time: each changes the sums. */ }
    // They may have to be cleaned first, and then they still count.
    for (let missing = this.#missing; missing > 0 && this.#recall(member); missing--) { /* One for each. */ }
  }

  /** Another member gets a lease back that is not needed yet. False: there is none. */
  #recall (except: Member<C>): boolean {
    return this.#members.some((member) => member !== except && member.engine.waiting.recall())
  }

  /**
   * Members that have less and found no room come first. One that can't create now (it backs off after failures) does
   * not keep the room.
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

  /** A connection is gone or late, so there may be room: whoever found none creates now. */
  freed (): void {
    const claiming = this.#claims.map(({ member }) => member)
    // Last the members without a claim: they only want connections up to their `min`.
    for (const member of new Set([...claiming, ...this.#refused])) this.#ask(member)
  }

  /**
   * Lets a member create where there is room. A member that can't create now loses its claim until it asks again.
   */
  #ask (member: Member<C>): void {
    if (!this.hasRoom) return
    this.#refused.delete(member)
    member.engine.pump()
  }

  /** The claims, those of members with the fewest connections first. */
  get #claims (): Array<Claim<C>> {
    return [...this.#refused].map((member) => {
      const { entries: { total, coming }, supply } = member.engine
      // While the circuit is not closed, the engine makes one probe, also where nobody waits.
      const isClosed = supply.creator.circuit.state === 'closed'
      return { member, total, wants: isClosed ? Math.min(supply.lacking, member.max - total) : 1 - coming }
    }).filter(({ wants }) => wants > 0).sort((a, b) => a.total - b.total)
  }

  /** How many connections must be closed for the claims, besides those that are being closed. */
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
      // What a member has above its own `max`, it closes by itself as it comes back.
      sum.staying += Math.min(here + coming, max)
    }
    return sum
  }

  #isSpare ({ engine, keepsLast }: Member<C>): boolean {
    return !keepsLast || engine.entries.here > 1
  }

  /** Closes an idle connection of the member that has most. False: none is idle. */
  #shed (except?: Member<C>): boolean {
    const [most] = this.#members
      .filter((member) => member !== except && (except === undefined || this.#isSpare(member)))
      .map(({ engine }) => engine)
      .filter(({ entries: { idle } }) => idle.length > 0)
      .sort((a, b) => b.entries.total - a.entries.total)
    return most !== undefined && most.shed()
  }
}
