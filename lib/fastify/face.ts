import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { AcquireOptions, Lease, RunOptions } from '../../types/pool.js'
import { PoolError } from '../pool/errors.js'
import { transact } from '../pool/pool.js'
import { overError } from './request/ending.js'
import { RequestScope, kReply, kScope, kGiven } from './request/scope.js'
import { kSetting } from './setting.js'

// What a request sees: the connections of its pools, `lease`, `acquire` and `transaction`.

export function decorateRequests (app: FastifyInstance): void {
  app.decorateRequest(kScope, null)
  app.decorateRequest(kReply, null)
  app.decorateRequest(kGiven, null)
  app.decorateRequest('lease', function (this: FastifyRequest, name: string) { return leaseOf(this, name) } as FastifyRequest['lease'])
  app.decorateRequest('transaction', function (this: FastifyRequest, name: string, fn: (connection: unknown) => unknown, options?: RunOptions) {
    return transactionFor(this, name, fn, options)
  } as FastifyRequest['transaction'])
  app.decorateRequest('acquire', function (this: FastifyRequest, name: string, options?: AcquireOptions) { return acquireFor(this, name, options) } as FastifyRequest['acquire'])
}

export function connectionOf (request: FastifyRequest, name: string): unknown {
  const connection = request[kScope]?.slots.connection(name)
  if (connection === undefined) throw notLeased(request, name)
  return connection
}

function leaseOf (request: FastifyRequest, name: string): Lease<unknown> {
  const lease = request[kScope]?.slots.lease(name)
  if (lease !== undefined) return lease
  request.server.pools.get(name)
  throw notLeased(request, name)
}

function notLeased (request: FastifyRequest, name: string): PoolError {
  const { method, url } = request.routeOptions
  if (request[kScope]?.slots.isParked(name) === true) {
    return new PoolError('FST_POOL_NOT_LEASED', `the connection of pool '${name}' went back while the body comes in (bodyGrace): use it from preValidation on, or await request.acquire('${name}')`)
  }
  return new PoolError('FST_POOL_NOT_LEASED', `route ${String(method)} ${url ?? ''} has no connection of pool '${name}': name it in config.pools, or await request.acquire('${name}')`)
}

async function acquireFor (request: FastifyRequest, name: string, options?: AcquireOptions): Promise<Lease<unknown>> {
  const { manager, plans, graces } = request.server[kSetting]
  const managed = manager.require(name)
  const reply = request[kReply]
  if (reply === null) throw notLeased(request, name)
  const scope = RequestScope.of(request, reply, `${request.method} ${request.routeOptions.url ?? ''}`, graces.abortGrace)
  if (scope === undefined) throw overError()
  return await scope.slots.acquire(plans.stepOf(request, managed), options)
}

async function transactionFor (request: FastifyRequest, name: string, fn: (connection: unknown) => unknown, options: RunOptions = {}): Promise<unknown> {
  // Where the request has a connection already, it is that one.
  const lease = await acquireFor(request, name, options.readOnly === true ? {} : { role: 'primary' })
  return await transact(lease, fn, options)
}
