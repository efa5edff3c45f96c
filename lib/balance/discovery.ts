import dns from 'node:dns'
import type { Connector } from '../../types/connector.js'
import type { Clock, Timer } from '../../types/pool.js'
import { Alarm, setRunningTimer } from '../engine/time.js'
import type { HostName, Target } from './target.js'

/** The most addresses of one name. */
const MOST = 100

/** What the discovery asks of its pool. */
export interface Site<C> {
  readonly clock: Clock
  /** How often each name is asked, in ms. */
  readonly interval: number
  /** How long the first answer is waited for, in ms. */
  readonly timeout: number
  run<T> (fn: () => T): T
  /** Somebody waits until the targets are known. */
  isAwaited (): boolean
  goesOn (): boolean
  /** How many targets the pool may have: each needs a connection. */
  max (): number
  /** All targets that are in use. */
  readonly targets: ReadonlyArray<Target<C>>
  add (seed: Target<C>, address: string, connector: Connector<C>): Target<C>
  /** Its leases end normally. */
  retire (target: Target<C>): void
  /** Its addresses are there: it is not used any more. */
  rest (seed: Target<C>): void
  /** A name could not be asked; told once, until it can be again. */
  failed (error: unknown): void
  /** Something needs somebody. */
  warn (message: string): void
  /** The answer for a name is in, or won't be soon. */
  done (): void
}

interface Seed<C> {
  readonly target: Target<C>
  readonly name: HostName<C>
  readonly found: Map<string, Target<C>>
  asking: boolean
  /** Its first answer is in, or is not waited for any more. */
  settled: boolean
  failing: boolean
  /** It was told that it has more addresses than can be used. */
  crowded: boolean
  late: Timer | undefined
}

/**
 * Asks host names for their addresses, again and again, as the system's resolver does (hosts file and search domains
 * included). Each address is a target. What a name does not tell any more retires; a name that can't be asked, or has
 * no address, retires nobody: the resolver fails more often than all servers at once.
 */
export class Discovery<C> {
  readonly #site: Site<C>
  readonly #seeds: ReadonlyArray<Seed<C>>
  readonly #alarm: Alarm
  #begun = false

  constructor (site: Site<C>) {
    this.#site = site
    this.#seeds = site.targets.flatMap((target) => {
      const { discover: name } = target.spec
      if (name === undefined) return []
      const flags = { asking: false, settled: false, failing: false, crowded: false, late: undefined }
      return [{ target, name, found: new Map<string, Target<C>>(), ...flags }]
    })
    this.#alarm = new Alarm(site.clock, (fn) => site.run(fn), () => { this.#tick() }, () => site.isAwaited())
  }

  /** Each name has been asked once, or there is none. */
  get settled (): boolean {
    return this.#seeds.every(({ settled }) => settled)
  }

  /** Begins with the pool's first use. */
  begin (): void {
    if (this.#begun || this.#seeds.length === 0) return
    this.#begun = true
    this.#tick()
  }

  end (): void {
    this.#begun = false
    this.#alarm.cancel()
    for (const { late } of this.#seeds) late?.cancel()
  }

  #tick (): void {
    if (!this.#begun || !this.#site.goesOn()) return
    for (const seed of this.#seeds) this.#site.run(() => this.#ask(seed))
    this.#alarm.set(this.#site.clock.now() + this.#site.interval)
  }

  /** Never twice at the same time: a resolver that hangs takes a thread for each question. */
  async #ask (seed: Seed<C>): Promise<void> {
    const { clock, done, timeout } = this.#site
    if (seed.asking) return
    seed.asking = true
    if (!seed.settled) {
      seed.late = setRunningTimer(clock, () => {
        seed.settled = true
        this.#failed(seed, new Error(`the resolver did not answer within ${timeout} ms`))
        done()
      }, timeout)
    }
    try {
      await this.#follow(seed, await addressesOf(seed.name.host))
      seed.failing = false
    } catch (error) {
      this.#failed(seed, error)
    } finally {
      seed.late?.cancel()
      seed.asking = false
      seed.settled = true
      if (this.#begun) done()
    }
  }

  #failed (seed: Seed<C>, error: unknown): void {
    if (!seed.failing && this.#begun) this.#site.failed(error)
    seed.failing = true
  }

  async #follow (seed: Seed<C>, addresses: readonly string[]): Promise<void> {
    const { add, goesOn, rest, retire } = this.#site
    const { found, name, target } = seed
    const made = await connectorsOf(name, addresses.slice(0, MOST).filter((address) => !found.has(address)))
    // The pool may have closed, and other names may have taken the room, meanwhile.
    const wanted = new Set(this.#begun && goesOn() ? addresses.slice(0, this.#placesFor(seed)) : [])
    const needless = [...made].filter(([address]) => !wanted.has(address))
    await Promise.allSettled(needless.map(([, connector]) => connector.close?.()))
    if (!this.#begun || !goesOn()) return
    this.#tellCrowd(seed, addresses.length, wanted.size)
    for (const [address, connector] of made) {
      if (wanted.has(address)) found.set(address, add(target, address, connector))
    }
    if (found.size > 0 && !target.isResting) rest(target)
    for (const [address, one] of found) {
      if (wanted.has(address)) continue
      found.delete(address)
      retire(one)
    }
  }

  /** How many addresses of a name can be used: each target needs a connection. */
  #placesFor ({ found, target }: Seed<C>): number {
    const { max, targets } = this.#site
    const others = targets.length - found.size - (target.isResting ? 0 : 1)
    return Math.max(1, Math.min(MOST, max() - others))
  }

  #tellCrowd (seed: Seed<C>, all: number, used: number): void {
    const wasCrowded = seed.crowded
    seed.crowded = all > used
    if (wasCrowded || !seed.crowded) return
    const remedy = used < MOST ? `max is ${this.#site.max()}, and each server needs a connection: raise it` : ''
    this.#site.warn(`the name ${seed.name.host} has ${all} addresses, of which ${used} are used: ` +
      (remedy || `there are ${MOST} at most`))
  }
}

/**
 * In the same order everywhere. Of a name with addresses of both kinds only those of IPv4: most likely the servers are
 * the same.
 */
async function addressesOf (host: string): Promise<string[]> {
  const all = await dns.promises.lookup(host, { all: true })
  const family = all.some((one) => one.family === 4) ? 4 : 6
  const addresses = new Set(all.filter((one) => one.family === family).map(({ address }) => address))
  if (addresses.size === 0) throw new Error(`the name ${host} has no address`)
  return [...addresses].sort()
}

async function connectorsOf<C> (name: HostName<C>, addresses: readonly string[]): Promise<Map<string, Connector<C>>> {
  return new Map(await Promise.all(addresses.map(async (address) =>
    [address, await name.connect(address)] as const)))
}
