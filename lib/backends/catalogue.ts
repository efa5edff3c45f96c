// The backends that are built in. A further one is a folder and a line here (docs/adding-a-backend.md). The code of a
// backend is loaded when a pool names it.
import type { Options } from '../pool/schema.js'
import type { Connector } from '../../types/connector.js'
import type { Address } from '../../types/options.js'
import type { Backend, DriverOption } from '../../types/plugin.js'
import type { MongoOptions } from './mongodb/options.js'
import type { ResetMode } from './shared/session.js'
import { mongodb, mysql, postgresql, sqlite } from './connectors.js'
import { adaptToSqlite } from './sqlite/options.js'

/** What a backend gets of a pool's options, with their defaults. */
interface BackendOptions extends Readonly<Address>, Readonly<DriverOption> {
  readonly name: string
  readonly connection: NonNullable<Address['connection']>
  readonly max: number
  readonly reset: ResetMode
  readonly appName?: string
  readonly acquireTimeout: number
  readonly connectTimeout: number
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
  /**
   * Refuses what the backend can't have, and sets its own defaults in `result`.
   *
   * @throws `FST_POOL_BAD_OPTIONS`
   */
  adapt? (result: Record<string, unknown>, given: Options, path: string): void
}

// Their databases have names: they refuse a number themselves.
type Connect = BuiltIn['connect']

export const catalogue: Readonly<Record<Backend, BuiltIn>> = {
  mongodb: {
    connect: mongodb as Connect,
    adopt: async (client, options) =>
      await (await import('./mongodb/connector.js')).adoptMongo(client, options as MongoOptions),
    noTargets: 'none, since the url of mongodb lists all members, and connection.readPreference chooses',
  },
  redis: {
    connect: async (options) => await (await import('./redis/choice.js')).redisOrCluster(options),
    adopt: async (client, options) => await (await import('./redis/choice.js')).adoptRedis(client, options),
  },
  postgresql: { connect: postgresql as Connect },
  postgres: { connect: postgresql as Connect },
  mysql: { connect: mysql as Connect },
  sqlite: { connect: sqlite, adapt: adaptToSqlite, noTargets: 'none, since sqlite is a file' },
}
