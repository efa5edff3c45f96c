// What machines read of a pool, once for OpenTelemetry and Prometheus. All of it comes from `stats()`, when it is
// asked for: nothing runs at an acquire.
import type { Circuit, Durations, PoolStats } from '../../../types/pool.js'

/** A number of a pool, with what tells it apart from others of the same metric. */
export type Sample = readonly [value: number, labels?: Readonly<Record<string, string>>]

export interface Series {
  /** As OpenTelemetry names it. */
  readonly name: string
  readonly help: string
  /** 'gauge': it goes up and down, and is no sum over pools; 'updown': it is one. */
  readonly kind: 'counter' | 'gauge' | 'updown'
  readonly unit: string
  read (stats: PoolStats): Sample[]
}

const circuits: Readonly<Record<Circuit, number>> = { closed: 0, 'half-open': 1, open: 2 }

const each = (record: Readonly<Record<string, number>>, label: string, scale = 1): Sample[] =>
  Object.entries(record).map(([key, value]) => [value * scale, { [label]: key }])

/**
 * `db.client.connection.*` of OpenTelemetry's semantic conventions, and ours, `fastify_pool.*`. The names are those of
 * 1.45.0, not stable yet, but for `.max`: that has been renamed to `.limit` there, and is here what dashboards know.
 * Label values are bounded: reasons and states are ours, routes are 200 at most, kinds of errors 20.
 */
export const series: readonly Series[] = [
  {
    name: 'db.client.connection.count',
    help: 'The number of connections that are currently in state described by the state attribute.',
    kind: 'updown',
    unit: '{connection}',
    read: ({ idle, used }) =>
      [[idle, { 'db.client.connection.state': 'idle' }], [used, { 'db.client.connection.state': 'used' }]],
  },
  updown('db.client.connection.max', 'The maximum number of open connections allowed.', ({ max }) => max),
  updown('db.client.connection.idle.min', 'The minimum number of idle open connections allowed.', ({ min }) => min),
  updown('db.client.connection.idle.max', 'The maximum number of idle open connections allowed.', ({ max }) => max),
  {
    name: 'db.client.connection.pending_requests',
    help: 'The number of current pending requests for an open connection.',
    kind: 'updown',
    unit: '{request}',
    read: ({ pending }) => [[pending]],
  },
  {
    name: 'db.client.connection.timeouts',
    help: 'The number of connection timeouts that have occurred trying to obtain a connection from the pool.',
    kind: 'counter',
    unit: '{timeout}',
    read: ({ timeouts }) => [[timeouts]],
  },
  {
    name: 'fastify_pool.refused',
    help: 'Acquires that were refused at once.',
    kind: 'counter',
    unit: '{request}',
    read: ({ refusals }) => each(refusals, 'reason'),
  },
  {
    name: 'fastify_pool.create.errors',
    help: 'Connections that could not be created.',
    kind: 'counter',
    unit: '{error}',
    read: ({ createFailures }) => each(createFailures, 'error.type'),
  },
  {
    name: 'fastify_pool.connection.closed',
    help: 'Connections that were closed.',
    kind: 'counter',
    unit: '{connection}',
    read: ({ destroyed }) => each(destroyed, 'reason'),
  },
  {
    name: 'fastify_pool.circuit',
    help: 'The circuit of creates: 0 closed, 1 half-open, 2 open.',
    kind: 'gauge',
    unit: '1',
    read: ({ targets, circuit }) => targets === undefined
      ? [[circuits[circuit], { target: '' }]]
      : targets.map(({ target, circuit }) => [circuits[circuit], { target }]),
  },
  {
    name: 'fastify_pool.leaked',
    help: 'Leases that were out for longer than leakAfter.',
    kind: 'counter',
    unit: '{lease}',
    read: ({ leaked }) => [[leaked]],
  },
  {
    name: 'fastify_pool.saturated.time',
    help: 'For how long all connections were used while somebody waited.',
    kind: 'counter',
    unit: 's',
    read: ({ saturated }) => [[saturated / 1000]],
  },
  {
    name: 'fastify_pool.busy.time',
    help: 'For how long connections were lent, all of them together.',
    kind: 'counter',
    unit: 's',
    read: ({ busy, routes }) => {
      const known = Object.values(routes).reduce((sum, ms) => sum + ms, 0)
      return [...each(routes, 'http.route', 0.001), [Math.max(0, busy - known) / 1000, { 'http.route': '' }]]
    },
  },
  {
    name: 'fastify_pool.target.lag',
    help: 'How far a replica is behind, as its server counts it.',
    kind: 'gauge',
    unit: '1',
    read: ({ targets = [] }) => targets.flatMap(({ target, lag }): Sample[] => lag === null ? [] : [[lag, { target }]]),
  },
  {
    name: 'fastify_pool.bulkhead.pending',
    help: 'Requests that wait for their share of the pool.',
    kind: 'updown',
    unit: '{request}',
    read: ({ bulkhead }) => bulkhead === undefined ? [] : [[bulkhead.pending]],
  },
  {
    name: 'fastify_pool.subscription.channels',
    help: 'Channels that the app listens to, by whether the server sends them now.',
    kind: 'updown',
    unit: '{channel}',
    read: ({ subscriptions }) => subscriptions === undefined
      ? []
      : [
          [subscriptions.channels - subscriptions.missing, { state: 'on' }],
          [subscriptions.missing, { state: 'missing' }],
        ],
  },
  {
    name: 'fastify_pool.subscription.reconnects',
    help: 'How often channels were subscribed to again after an outage.',
    kind: 'counter',
    unit: '{reconnect}',
    read: ({ subscriptions }) => subscriptions === undefined ? [] : [[subscriptions.reconnects]],
  },
  {
    name: 'fastify_pool.subscription.messages',
    help: 'Messages that came; of an iterator those that it dropped, since its reader was too slow.',
    kind: 'counter',
    unit: '{message}',
    read: ({ subscriptions }) => subscriptions === undefined
      ? []
      : [[subscriptions.received, { state: 'received' }], [subscriptions.dropped, { state: 'dropped' }]],
  },
]

function updown (name: string, help: string, of: (stats: PoolStats) => number): Series {
  return { name, help, kind: 'updown', unit: '{connection}', read: (stats) => [[of(stats)]] }
}

/** A sample, and whose it is. */
export interface PoolSample {
  readonly pool: string
  readonly value: number
  readonly labels: Readonly<Record<string, string>>
}

/** The samples of all pools. Of pools with the same name, in scopes side by side, those that are alike are one. */
export function gather ({ kind, read }: Series, pools: readonly PoolStats[]): PoolSample[] {
  const samples = new Map<string, PoolSample>()
  for (const stats of pools) {
    for (const [value, labels = {}] of read(stats)) {
      const key = JSON.stringify([stats.name, labels])
      const other = samples.get(key)?.value
      const both = other === undefined ? value : kind === 'gauge' ? Math.max(other, value) : other + value
      samples.set(key, { pool: stats.name, value: both, labels })
    }
  }
  return [...samples.values()]
}

/** The same of a distribution: by pool. */
export function gatherDurations (of: (stats: PoolStats) => Durations, pools: readonly PoolStats[]) {
  const all = new Map<string, Pick<Durations, 'count' | 'sum' | 'buckets'>>()
  for (const stats of pools) {
    const own = of(stats)
    const other = all.get(stats.name)
    all.set(stats.name, other === undefined
      ? own
      : {
          count: own.count + other.count,
          sum: own.sum + other.sum,
          buckets: own.buckets.map(({ le, count }, at) => ({ le, count: count + other.buckets[at]!.count })),
        })
  }
  return all
}

/** The distributions, in seconds. */
export const distributions = [
  {
    name: 'db.client.connection.create_time',
    help: 'The time it took to create a new connection.',
    of: ({ create }: PoolStats) => create,
  },
  {
    name: 'db.client.connection.wait_time',
    help: 'The time it took to obtain an open connection from the pool.',
    of: ({ wait }: PoolStats) => wait,
  },
  {
    name: 'db.client.connection.use_time',
    help: 'The time between borrowing a connection and returning it to the pool.',
    of: ({ held }: PoolStats) => held,
  },
] as const
