import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { AcquireOptions, Lease, RunOptions } from '../../types/pool.js'
import { PoolError, badOption } from '../engine/errors.js'
import type { After } from '../engine/aftermath.js'
import { after, transact } from '../engine/lease.js'
import { checkNames } from '../pool/calls.js'
import { isUnusual, overError } from './request/ending.js'
import { RequestScope, kGiven, kReply, kScope } from './request/scope.js'
import { kSetting } from './setting.js'
import { keyless } from './tenants/source.js'

// What a request sees: its connections, `lease`, `acquire` and `transaction`.

export function decorateRequests (app: FastifyInstance): void {
  // Only so that all requests have one shape: those of a scope that was there before the plugin have none of them.
  for (const key of [kScope, kReply, kGiven]) app.decorateRequest(key, undefined)
  app.decorateRequest('lease', lease as FastifyRequest['lease'])
  app.decorateRequest('acquire', acquire as FastifyRequest['acquire'])
  app.decorateRequest('transaction', transaction as FastifyRequest['transaction'])
  app.decorateRequest('afterCommit', function (name, fn) { runAfter(this, name, 'afterCommit', fn) })
  app.decorateRequest('afterRollback', function (name, fn) { runAfter(this, name, 'afterRollback', fn) })
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
  checkNames('acquire', options)
  const setting = this.server[kSetting]
  const { manager, plans } = setting
  const managed = manager.require(name)
  const reply = this[kReply]
  if (reply === undefined) throw notLeased(this, name)
  const scope = RequestScope.of(this, reply, routeOf(this), setting)
  if (scope === undefined) throw overError()
  return await scope.slots.acquire(plans.stepOf(this, managed), options)
}

type Run = (connection: unknown) => unknown

async function transaction (this: FastifyRequest, name: string, fn: Run, options: RunOptions = {}): Promise<unknown> {
  // Where the request has a connection already, it is that one.
  const lease = await this.acquire(name, options.readOnly === true ? {} : { role: 'primary' })
  return await transact(lease, fn, options)
}

function runAfter (request: FastifyRequest, name: string, on: After, fn: () => unknown): void {
  const lease = request.lease(name)
  if (typeof fn !== 'function') throw badOption('fn', fn, 'a function')
  after(lease, on, async () => {
    try {
      await fn()
    } catch (err) {
      request.log.error({ err, pool: name }, `${on} failed`)
    }
  })
}

/** As holders and the log show it. */
function routeOf ({ method, routeOptions }: FastifyRequest): string {
  return `${method} ${routeOptions.url ?? '(404)'}`
}

function notLeased (request: FastifyRequest, name: string): PoolError {
  if (!request.is404 && request.server[kSetting].manager.find(name)?.source.serves(request) === false) {
    return keyless(name)
  }
  const error = new PoolError('FST_POOL_NOT_LEASED', whyNotLeased(request, name))
  // A hook of the app's that runs for all requests makes no failure of the app out of a wrong address.
  return request.is404 ? Object.assign(error, { statusCode: 404 }) : error
}

function whyNotLeased (request: FastifyRequest, name: string): string {
  const byHand = `await request.acquire('${name}')`
  switch (request[kScope]?.slots.parkedFor(name)) {
    case 'a slow body':
      return `the connection of pool '${name}' went back while the body comes in (bodyGrace): use it from ` +
        `preValidation on, or ${byHand}`
    case 'an upload':
      return `the handler of this request reads its body (an upload), and the connection of pool '${name}' does not ` +
        `wait for that: ${byHand} when the body has been read`
  }
  const { method, is404 } = request
  if (is404) {
    return `no route matches this request (404), and such requests have no connection of pool '${name}': a hook ` +
      `that runs for all requests looks at request.is404 first, or uses ${byHand}`
  }
  const route = `route ${routeOf(request)}`
  if (isUnusual(request)) {
    const what = method === 'OPTIONS' ? 'OPTIONS' : 'a WebSocket upgrade'
    return `${route} has no connection of pool '${name}', since ${what} leases only what the route's config.pools ` +
      `names: name it there, or ${byHand}`
  }
  return `${route} has no connection of pool '${name}': name it in config.pools, or ${byHand}`
}
