import type { PoolStats } from '../../../types/pool.js'
import { badOption, PoolError } from '../../engine/errors.js'
import { statsOf, type PoolManager } from '../pools.js'
import { distributions, gather, gatherDurations, series, type PoolSample } from './series.js'

/** What we use of prom-client. */
interface Client {
  readonly register: Registry
}
interface Registry {
  registerMetric (metric: object): void
  removeSingleMetric (name: string): void
}

/** A metric that is read from the pools when it is collected. */
interface Collected {
  readonly name: string
  readonly help: string
  readonly type: 'counter' | 'gauge' | 'histogram'
  readonly aggregator: 'sum'
  readonly values: object[]
}

/** The pools whose numbers one registry has: those of all registrations that name it. */
const exporters = new WeakMap<Registry, Exporter>()

/**
 * Adds the pools of a scope to a registry.
 *
 * @param given the option's `register`; undefined: the default one
 * @returns what takes them out again
 * @throws `FST_POOL_MISSING_DRIVER` where prom-client is needed and not installed
 */
export async function exportPrometheus (manager: PoolManager, given: object | undefined): Promise<() => void> {
  const registry = given === undefined ? await defaultRegistry() : readRegistry(given)
  const exporter = exporters.get(registry) ?? new Exporter(registry)
  exporters.set(registry, exporter)
  return exporter.add(manager)
}

async function defaultRegistry (): Promise<Registry> {
  try {
    const client = await import('prom-client') as unknown as Client & { readonly default?: Client }
    return (client.default ?? client).register
  } catch (cause) {
    throw new PoolError('FST_POOL_MISSING_DRIVER',
      'option prometheus needs the package prom-client: npm install prom-client', { cause })
  }
}

function readRegistry (given: object): Registry {
  const methods = ['registerMetric', 'removeSingleMetric']
  if (methods.every((name) => typeof (given as Record<string, unknown>)[name] === 'function')) return given as Registry
  throw badOption('prometheus.register', given, 'a registry of prom-client')
}

/** The metrics in one registry. They are there as long as some scope is. */
class Exporter {
  readonly #registry: Registry
  readonly #managers = new Set<PoolManager>()

  constructor (registry: Registry) {
    this.#registry = registry
  }

  add (manager: PoolManager): () => void {
    if (this.#managers.size === 0) for (const metric of this.#metrics()) this.#registry.registerMetric(metric)
    this.#managers.add(manager)
    return () => {
      if (!this.#managers.delete(manager) || this.#managers.size > 0) return
      for (const { name } of this.#metrics()) this.#registry.removeSingleMetric(name)
    }
  }

  get #stats (): PoolStats[] {
    return [...this.#managers].flatMap((manager) => manager.own.map(statsOf))
  }

  #metrics (): Array<{ readonly name: string, get (): Promise<Collected> }> {
    const metrics = series.map((one) => {
      const { name, help, kind, unit } = one
      const type = kind === 'counter' ? 'counter' as const : 'gauge' as const
      const told = `${plain(name)}${unit === 's' ? '_seconds' : ''}${type === 'counter' ? '_total' : ''}`
      return this.#metric(told, help, type, (stats) => gather(one, stats).map(valueOf))
    })
    return [...metrics, ...distributions.map(({ name, help, of }) => {
      const told = `${plain(name)}_seconds`
      return this.#metric(told, help, 'histogram', (stats) =>
        [...gatherDurations(of, stats)].flatMap(([name, { buckets, count, sum }]) => {
          const pool = { pool: name }
          return [
            ...buckets.map(({ le, count }) =>
              ({ labels: { le: le / 1000, ...pool }, value: count, metricName: `${told}_bucket` })),
            { labels: { le: '+Inf', ...pool }, value: count, metricName: `${told}_bucket` },
            { labels: pool, value: sum / 1000, metricName: `${told}_sum` },
            { labels: pool, value: count, metricName: `${told}_count` },
          ]
        }))
    })]
  }

  #metric (name: string, help: string, type: Collected['type'], read: (stats: readonly PoolStats[]) => object[]) {
    return {
      name,
      get: async (): Promise<Collected> => ({ name, help, type, aggregator: 'sum', values: read(this.#stats) }),
      // The numbers are the pool's: a registry can't set them back.
      reset: () => {},
    }
  }
}

/** Labels have short names: `state`, `reason`, `error_type`, `target`, `http_route`. */
function valueOf ({ pool, value, labels }: PoolSample): object {
  const own = Object.entries(labels).map(([key, text]) => [plain(key.replace('db.client.connection.', '')), text])
  return { value, labels: { pool, ...Object.fromEntries(own) } }
}

function plain (name: string): string {
  return name.replaceAll('.', '_')
}
