import { isIP } from 'node:net'
import type { FastifyInstance } from 'fastify'
import type { Connector } from '../../types/connector.js'
import type { TargetSpec } from '../balance/target-pool.js'
import { catalogue } from '../backends/catalogue.js'
import { PoolError, badOption } from '../engine/errors.js'
import { placeOf } from './log/place.js'
import type { ResolvedPoolOptions, ResolvedTarget } from './options.js'

// The servers of a pool over several, from its options.

/**
 * @param connectors one for each target
 * @throws `FST_POOL_BAD_OPTIONS`
 */
export function specsOf (
  options: ResolvedPoolOptions, connectors: ReadonlyArray<Connector<unknown>>
): Array<TargetSpec<unknown>> {
  const targets = options.targets!
  refuseMutePrimaries(targets, connectors, options.name)
  const specs = targets.map((target, index): TargetSpec<unknown> => ({
    ...target, connector: connectors[index]!, id: idOf(target), discover: discoverOf(target, options),
  }))
  if (options.discover === undefined || specs.some(({ discover }) => discover !== undefined)) return specs
  throw badDiscover(options, 'a peer or a replica whose url or host has a host name, which is asked for addresses ' +
    '(not a function: what changes belongs into connection)')
}

/** Where several are primaries, and none can say what it is, the first one would have all the work for good. */
function refuseMutePrimaries (
  targets: readonly ResolvedTarget[], connectors: ReadonlyArray<Connector<unknown>>, name: string
): void {
  const isMute = ({ role }: ResolvedTarget, index: number) =>
    role === 'primary' && connectors[index]!.inspect === undefined
  const mute = targets.filter(isMute)
  if (mute.length < 2) return
  const index = targets.indexOf(mute[1]!)
  const error = badOption(`targets.${index}.role`, mute[1]!.role, "'peer' for all targets, where they are equal " +
    "servers, or 'replica' for all but one: their connectors have no inspect, which could tell who is the primary")
  throw new PoolError(error.code, `pool '${name}': ${error.message}`)
}

function badDiscover ({ name, discover }: ResolvedPoolOptions, expected: string): PoolError {
  const error = badOption('discover', discover, expected)
  return new PoolError(error.code, `pool '${name}': ${error.message}`)
}

/** Where it is, so that keys belong to the same server in all processes, whatever its place in the list. */
function idOf ({ options }: ResolvedTarget): string | undefined {
  const { host, port } = placeOf(options)
  return host === undefined ? undefined : serverAt(host, port)
}

function serverAt (host: string, port: number | undefined): string {
  return `${host} ${port ?? ''}`
}

/** The host name of a target that stands for all addresses of it; undefined: it is one server. */
function discoverOf (target: ResolvedTarget, pool: ResolvedPoolOptions): TargetSpec<unknown>['discover'] {
  const { options, role } = target
  const { backend, connection, url } = options
  if (pool.discover === undefined || role === 'primary') return undefined
  if (backend === undefined) throw badDiscover(pool, 'none beside connectors of your own')
  const { cluster, sentinels, socketPath } = connection as Readonly<Record<string, unknown>>
  if (cluster !== undefined || sentinels !== undefined || socketPath !== undefined) {
    throw badDiscover(pool, 'none beside connection.cluster, connection.sentinels and connection.socketPath, which ' +
      'say where the servers are')
  }
  if (typeof url === 'function' || (url === undefined && options.host === undefined)) return undefined
  const { host, port } = placeOf(options)
  const name = host?.replace(/^\[|\]$/g, '')
  if (name === undefined || name.startsWith('/') || name.includes(',') || isIP(name) !== 0) return undefined
  return {
    host: name,
    id: (address) => serverAt(address, port),
    connect: (address) => catalogue[backend].connect({ ...options, hostaddr: address }),
  }
}

/** Independent stores are not one: without a key, what one request wrote the next one looks for elsewhere. */
export function tellOfPeers (app: FastifyInstance, options: ResolvedPoolOptions): void {
  const { affinity, backend, discover, name, targets } = options
  const arePeers = targets!.every(({ role }) => role === 'peer') && (targets!.length > 1 || discover !== undefined)
  if (backend !== 'redis' || !arePeers || affinity !== undefined) return
  app.log.child({ pool: name }).warn({ event: 'pool.error', phase: 'targets' }, 'the peers are Redis servers, ' +
    'each with data of its own, ' +
    'and requests get any of them: what one has written another one does not find. Give the pool ' +
    'affinity: (request) => key, so that the same key always gets the same server')
}
