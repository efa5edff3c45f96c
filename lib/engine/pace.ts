// How fast things go: a line, connects, leases. What the pool expects from that: how long a caller will wait, and where
// one more connection pays. Plain arithmetic, which knows no pool.

/** The line's pace is a mean over so many rounds. In a round, each connection serves one caller of the line. */
const ROUNDS = 8

/** From so many rounds on the pace is known. */
const KNOWN = 3

/** How fast a line moves. */
export class Pace {
  /** The mean time between two turns in each of the last rounds, in ms. */
  readonly #rounds: number[] = []
  /** How many callers in the line got a connection in the round that is under way. */
  #turns = 0
  #began = 0
  /** The mean time between two turns, in ms. */
  mean = 0

  /** A line that was empty or suspended begins anew: earlier turns tell nothing about it. */
  begin (now: number): void {
    this.#rounds.length = this.#turns = this.mean = 0
    this.#began = now
  }

  /** @param max how many connections serve the line */
  turn (now: number, max: number): void {
    if (++this.#turns < max) return
    if (this.#rounds.length === ROUNDS) this.#rounds.shift()
    this.#rounds.push((now - this.#began) / this.#turns)
    this.#began = now
    this.#turns = 0
    this.#average()
  }

  /** The event loop stood still for `ms`, until now: that is no pace, and it may be known after the turns behind it. */
  stood (now: number, ms: number, max: number): void {
    const inThisRound = Math.min(ms, now - this.#began)
    this.#began += inThisRound
    const last = this.#rounds.length - 1
    if (last < 0) return
    this.#rounds[last] = Math.max(0, this.#rounds[last]! - (ms - inThisRound) / max)
    this.#average()
  }

  /** Without the longest round, so that one pause, of whatever, is no pace. */
  #average (): void {
    let sum = 0
    let longest = 0
    for (const round of this.#rounds) {
      sum += round
      if (round > longest) longest = round
    }
    this.mean = (sum - longest) / Math.max(1, this.#rounds.length - 1)
  }

  /** Whether the line has moved often enough to tell how fast it does. */
  get isKnown (): boolean {
    return this.#rounds.length >= KNOWN
  }
}

/** What was measured longer ago than this tells nothing any more, in ms. */
const FRESH = 60_000

/** The mean of durations that were measured lately. */
export class Recent {
  readonly #window: number
  #count = 0
  #mean = 0
  #measuredAt = -Infinity
  #stoodUntil = -Infinity
  #kept = { count: 0, mean: 0, measuredAt: -Infinity }

  /** @param window how many durations the mean is over, about: the last ones count most */
  constructor (window: number) {
    this.#window = window
  }

  /** @param ms the duration, measured now */
  record (ms: number, now: number): void {
    // It has time in it for which the event loop stood still.
    if (now - ms < this.#stoodUntil) return
    if (now - this.#measuredAt > FRESH) this.#count = 0
    this.#measuredAt = now
    this.#mean += (ms - this.#mean) / Math.min(++this.#count, this.#window)
  }

  /** Called at each tick: what is known by now has no stall of the event loop in it. */
  keep (): void {
    this.#kept = { count: this.#count, mean: this.#mean, measuredAt: this.#measuredAt }
  }

  /** The event loop stood still until now. What was measured since `keep` may have that time in it: it is forgotten. */
  stood (now: number): void {
    this.#stoodUntil = now
    this.#count = this.#kept.count
    this.#mean = this.#kept.mean
    this.#measuredAt = this.#kept.measuredAt
  }

  /** In ms; undefined: none was measured within the last minute. */
  mean (now: number): number | undefined {
    return now - this.#measuredAt > FRESH ? undefined : this.#mean
  }
}

/**
 * For how many of those who wait, and for whom no create is under way, one pays: whoever is that far behind in the line
 * would wait at least as long, at the pace of the connections that are here, as a connect takes.
 *
 * @param here how many connections there are
 * @param connect how long a connect takes, in ms; undefined: not known
 * @param hold how long a lease is held, in ms; undefined: not known
 */
export function paying (
  waiting: number, here: number, connect: number | undefined, hold: number | undefined
): number {
  if (here === 0 || connect === undefined || hold === undefined || connect === 0) return Math.max(0, waiting)
  // So many are served before a connection that is begun now could serve anybody.
  const served = hold === 0 ? Infinity : Math.ceil(here * connect / hold) - 1
  return Math.max(0, waiting - served)
}
