import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { AcquireOptions, Lease, RunOptions } from '../../types/pool.js'
import { PoolError } from '../engine/errors.js'
import { transact } from '../engine/lease.js'
import { overError } from './request/ending.js'
import { RequestScope, kGiven, kReply, kScope } from './request/scope.js'
import { kSetting } from './setting.js'

// What a request sees: its connections, `lease`, `acquire` and `transaction`.

export function decorateRequests (app: FastifyInstance): void {
  app.decorateRequest(kScope, null)
  app.decorateRequest(kReply, null)
  app.decorateRequest(kGiven, null)
  app.decorateRequest('lease', lease as FastifyRequest['lease'])
  app.decorateRequest('acquire', acquire as FastifyRequest['acquire'])
  app.decorateRequest('transaction', transaction as FastifyRequest['transaction'])
}

/** `request.<name>`. */
export function decorateConnection (app: FastifyInstance, name: string): void {
  app.decorateRequest(name, { getter (this: FastifyRequest) { return connectionOf(this, name) } })
}

function connectionOf (request: FastifyRequest, name: string): unknown {
  const connection = request[kScope]?.slots.connection(name)
  if (connection === undefined) throw notLeased(request, name)
  return connection
}

function lease (this: FastifyRequest, name: string): Lease<unknown> {
  const lease = this[kScope]?.slots.lease(name)
  if (lease !== undefined) return lease
  this.server[kSetting].manager.require(name)
  throw notLeased(this, name)
}

async function acquire (this: FastifyRequest, name: string, options?: AcquireOptions): Promise<Lease<unknown>> {
  const { manager, plans, abortGrace } = this.server[kSetting]
  const managed = manager.require(name)
  const reply = this[kReply]
  if (reply === null) throw notLeased(this, name)
  const scope = RequestScope.of(this, reply, `${this.method} ${this.routeOptions.url ?? ''}`, abortGrace)
  if (scope === undefined) throw overError()
  return await scope.slots.acquire(plans.stepOf(this, managed), options)
}

type Run = (connection: unknown) => unknown

async function transaction (this: FastifyRequest, name: string, fn: Run, options: RunOptions = {}): Promise<unknown> {
  // Where the request has a connection already, it is that one.
  const lease = await this.acquire(name, options.readOnly === true ? {} : { role: 'primary' })
  return await transact(lease, fn, options)
}

function notLeased (request: FastifyRequest, name: string): PoolError {
  const { method, url } = request.routeOptions
  if (request[kScope]?.slots.isParked(name) === true) {
    return new PoolError('FST_POOL_NOT_LEASED', `the connection of pool '${name}' went back while the body comes in ` +
      `(bodyGrace): use it from preValidation on, or await request.acquire('${name}')`)
  }
  return new PoolError('FST_POOL_NOT_LEASED', `route ${String(method)} ${url ?? ''} has no connection of pool ` +
    `'${name}': name it in config.pools, or await request.acquire('${name}')`)
}
