// The backends that are built in. A further one is a folder and a line here (docs/adding-a-backend.md). The code of a
// backend is loaded when a pool names it.
import type { Options } from '../pool/schema.js'
import type { Connector } from '../../types/connector.js'
import type { Address } from '../../types/options.js'
import type { Backend, DriverOption } from '../../types/plugin.js'
import type { MongoOptions } from './mongodb/options.js'
import type { PostgresReset } from './postgresql/options.js'
import type { RedisClusterOptions } from './redis/cluster-options.js'
import type { RedisOptions } from './redis/options.js'
import { mongodb, mysql, postgresql, sqlite } from './connectors.js'
import { adaptToSqlite } from './sqlite/options.js'

/** What a backend gets of a pool's options, with their defaults. */
interface BackendOptions extends Readonly<Address>, Readonly<DriverOption> {
  readonly name: string
  readonly connection: NonNullable<Address['connection']>
  readonly max: number
  readonly reset: PostgresReset
  readonly resetTimeout: number
  readonly appName?: string
  readonly acquireTimeout: number
  readonly connectTimeout: number
  /** The address to which its connections go, where `url` and `host` have the server's name. */
  readonly hostaddr?: string
}

interface BuiltIn {
  /**
   * Makes the backend's connector. Nothing is opened yet.
   *
   * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`
   */
  connect (options: BackendOptions): Promise<Connector<unknown>>
  /** Makes a connector over a client that the app made. undefined: this is no such client. */
  adopt? (client: object, options: BackendOptions): Promise<Connector<unknown> | undefined>
  /** What `targets` should be where there can be none, with the reason. undefined: there can. */
  readonly noTargets?: string
  /** What its connectors call their database, where that is not the name here. */
  readonly system?: string
  /**
   * Refuses what the backend can't have, and sets its own defaults in `result`.
   *
   * @throws `FST_POOL_BAD_OPTIONS`
   */
  adapt? (result: Record<string, unknown>, given: Options, path: string): void
}

// Their databases have names: they refuse a number themselves.
type Connect = BuiltIn['connect']
type AnyRedis = RedisOptions & RedisClusterOptions

export const catalogue: Readonly<Record<Backend, BuiltIn>> = {
  mongodb: {
    connect: mongodb as Connect,
    adopt: async (client, options) =>
      await (await import('./mongodb/connector.js')).adoptMongo(client, options as MongoOptions),
    noTargets: 'none, since the url of mongodb lists all members (or every mongos), and ' +
      'connection.readPreference chooses',
  },
  redis: {
    connect: async (options) => await (await import('./redis/choice.js')).redisOrCluster(options as AnyRedis),
    adopt: async (client, options) => await (await import('./redis/choice.js')).adoptRedis(client, options as AnyRedis),
  },
  postgresql: { connect: postgresql as Connect },
  postgres: { connect: postgresql as Connect, system: 'postgresql' },
  mysql: { connect: mysql as Connect },
  sqlite: {
    connect: sqlite as Connect,
    adapt: adaptToSqlite,
    noTargets: 'none, since sqlite is a file on this machine, which one pool reads and writes: give each file a ' +
      'pool of its own, under a name of its own',
  },
}
