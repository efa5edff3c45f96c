import type { Connector } from '../../types/connector.js'
import type { HookInfo, WrapInfo } from '../../types/pool.js'
import type { CircuitOptions } from './circuit.js'

type Hook<C> = (connection: C, info: HookInfo) => unknown

/** The options of one engine, checked and complete. Names and meanings are those of types/options.ts. */
export interface Settings<C> {
  readonly name: string
  /** Read for its secrets only. */
  readonly url?: unknown
  /** Read for its secrets only. */
  readonly connection?: unknown
  readonly min: number
  readonly max: number
  readonly acquireTimeout: number
  readonly connectTimeout: number
  readonly validateTimeout: number
  readonly resetTimeout: number
  readonly destroyTimeout: number
  readonly commitTimeout: number
  readonly holdTimeout: number
  readonly closeTimeout: number
  readonly idleTimeout: number
  readonly maxLifetime: number
  readonly maxUses: number
  readonly validateAfter: number
  readonly keepalive: number
  readonly maxPending: number
  readonly maxConnecting?: number | undefined
  readonly leakAfter: number
  readonly backoff: { readonly min: number, readonly max: number }
  readonly circuit: false | CircuitOptions
  readonly overload: boolean
  readonly allowExitOnIdle: boolean
  readonly reset: 'session' | 'transaction' | 'none' | 'joined'
  readonly onConnect?: Hook<C> | undefined
  readonly onAcquire?: Hook<C> | undefined
  readonly onRelease?: Hook<C> | undefined
  readonly onDisconnect?: Hook<C> | undefined
  readonly wrap?: ((connection: C, info: WrapInfo) => unknown) | undefined
}

/** What `reset` may be where it is no PostgreSQL. */
export const unjoined = "'session', 'transaction' or 'none', since 'joined' is for postgresql alone"

/** The most connections that the connector can have. */
export const limitOf = ({ max = Number.MAX_SAFE_INTEGER }: Pick<Connector<never>, 'max'>): number => max
