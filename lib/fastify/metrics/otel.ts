import { badOption, PoolError } from '../../engine/errors.js'
import { bounds } from '../../engine/histogram.js'
import { statsOf, type PoolManager } from '../pools.js'
import { measure } from './measure.js'
import { distributions, gather, series, type Series } from './series.js'

// What we use of @opentelemetry/api.

type Attributes = Readonly<Record<string, string>>
interface Told {
  readonly description: string
  readonly unit: string
  readonly advice?: { readonly explicitBucketBoundaries: number[] }
}
/** An instrument that is asked when numbers are collected. */
type Observable = object
interface Histogram {
  record (value: number, attributes: Attributes): void
}
interface Result {
  observe (instrument: Observable, value: number, attributes: Attributes): void
}
type Observe = (result: Result) => void
interface Meter {
  createObservableCounter (name: string, told: Told): Observable
  createObservableGauge (name: string, told: Told): Observable
  createObservableUpDownCounter (name: string, told: Told): Observable
  createHistogram (name: string, told: Told): Histogram
  addBatchObservableCallback (observe: Observe, instruments: Observable[]): void
  removeBatchObservableCallback (observe: Observe, instruments: Observable[]): void
}
interface Api {
  readonly metrics: { getMeter (name: string): Meter }
}

/** The pools whose numbers one meter has: those of all registrations that have it. */
const exporters = new WeakMap<Meter, Exporter>()

/**
 * Adds the pools of a scope to a meter.
 *
 * @param given the option's `meter`; undefined: that of the global provider
 * @returns what takes them out again
 * @throws `FST_POOL_MISSING_DRIVER` where @opentelemetry/api is needed and not installed
 */
export async function exportOtel (manager: PoolManager, given: object | undefined): Promise<() => void> {
  const meter = given === undefined ? await defaultMeter() : readMeter(given)
  const exporter = exporters.get(meter) ?? new Exporter(meter)
  exporters.set(meter, exporter)
  return exporter.add(manager)
}

async function defaultMeter (): Promise<Meter> {
  try {
    const api = await import('@opentelemetry/api') as unknown as Api & { readonly default?: Api }
    return (api.default ?? api).metrics.getMeter('fastify-pool')
  } catch (cause) {
    throw new PoolError('FST_POOL_MISSING_DRIVER',
      'option otel needs the package @opentelemetry/api: npm install @opentelemetry/api', { cause })
  }
}

const methods = [
  'createObservableCounter', 'createObservableGauge', 'createObservableUpDownCounter', 'createHistogram',
  'addBatchObservableCallback', 'removeBatchObservableCallback',
]

function readMeter (given: object): Meter {
  if (methods.every((name) => typeof (given as Record<string, unknown>)[name] === 'function')) return given as Meter
  throw badOption('otel.meter', given, 'a meter of @opentelemetry/api')
}

const poolName = 'db.client.connection.pool.name'

/** The instruments of one meter, which can't be removed. They have numbers as long as some scope is there. */
class Exporter {
  readonly #meter: Meter
  readonly #observed: ReadonlyArray<readonly [Series, Observable]>
  readonly #create: Histogram
  readonly #wait: Histogram
  readonly #use: Histogram
  /** The scopes, each with what ends its listeners. */
  readonly #managers = new Map<PoolManager, () => void>()
  #isObserved = false
  /** What was observed last of each pool and can go down: a reader keeps what nobody observes any more. */
  #last: ReadonlyMap<string, ReadonlyArray<readonly [Observable, Attributes]>> = new Map()

  constructor (meter: Meter) {
    this.#meter = meter
    this.#observed = series.map((one) => [one, instrumentOf(meter, one)])
    const [create, wait, use] = distributions.map(({ name, help }) => meter.createHistogram(name, {
      description: help, unit: 's', advice: { explicitBucketBoundaries: bounds.map((ms) => ms / 1000) },
    })) as [Histogram, Histogram, Histogram]
    this.#create = create
    this.#wait = wait
    this.#use = use
  }

  add (manager: PoolManager): () => void {
    if (!this.#isObserved) this.#meter.addBatchObservableCallback(this.#observe, this.#instruments)
    this.#isObserved = true
    if (!this.#managers.has(manager)) this.#managers.set(manager, this.#listen(manager))
    return () => {
      const end = this.#managers.get(manager)
      if (end === undefined) return
      end()
      this.#managers.delete(manager)
      // Where something was observed, it is observed to be gone first.
      if (this.#last.size === 0) this.#end()
    }
  }

  /** All scopes have closed, and that their pools have no connections any more was observed. */
  #end (): void {
    if (this.#managers.size > 0 || !this.#isObserved) return
    this.#isObserved = false
    this.#meter.removeBatchObservableCallback(this.#observe, this.#instruments)
  }

  get #instruments (): Observable[] {
    return this.#observed.map(([, instrument]) => instrument)
  }

  /** A histogram can't be observed: each duration is recorded when it ends. */
  #listen (manager: PoolManager): () => void {
    return manager.follow(({ name, pool }) => {
      const attributes: Attributes = Object.freeze({ [poolName]: name })
      const undos = [
        pool.on('connect', ({ took }) => { this.#create.record(took / 1000, attributes) }),
        measure(pool, {
          lent: (wait) => { this.#wait.record(wait / 1000, attributes) },
          ended: (held) => { this.#use.record(held / 1000, attributes) },
        }),
      ]
      return () => { for (const undo of undos) undo() }
    })
  }

  readonly #observe: Observe = (result) => {
    const pools = [...this.#managers.keys()].flatMap((manager) => manager.own.map(statsOf))
    const now = new Map<string, Array<readonly [Observable, Attributes]>>(pools.map(({ name }) => [name, []]))
    for (const [one, instrument] of this.#observed) {
      for (const { pool, value, labels } of gather(one, pools)) {
        const attributes = { [poolName]: pool, ...labels }
        result.observe(instrument, value, attributes)
        if (one.kind !== 'counter') now.get(pool)!.push([instrument, attributes])
      }
    }
    for (const [pool, observed] of this.#last) {
      if (!now.has(pool)) for (const [instrument, attributes] of observed) result.observe(instrument, 0, attributes)
    }
    this.#last = now
    // Later: the meter walks through its callbacks now.
    if (this.#managers.size === 0) queueMicrotask(() => { this.#end() })
  }
}

function instrumentOf (meter: Meter, { name, help, kind, unit }: Series): Observable {
  const told = { description: help, unit }
  if (kind === 'counter') return meter.createObservableCounter(name, told)
  return kind === 'gauge' ? meter.createObservableGauge(name, told) : meter.createObservableUpDownCounter(name, told)
}
