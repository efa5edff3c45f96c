import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import type { AcquireOptions, Lease, PoolFace, RunOptions } from '../../types/pool.js'
import { PoolError } from '../pool/errors.js'
import type { PluginOptions } from '../../types/plugin.js'
import { checkPluginOptions, checkRequestName, type ResolvedPluginOptions, type ResolvedPoolOptions } from './options.js'
import { transact } from '../pool/pool.js'
import { makePool, type Share } from './backends.js'
import { Bulkhead } from './bulkhead.js'
import { logEvents } from './logging.js'
import { Plans, checkPolicy, checkRoute, roleOf, rulesOf, setRules, stepOf, type Step } from './plan.js'
import { PoolManager } from './pools.js'
import { RequestHolder, RequestScope, kReply, kScope, kSent, overError } from './scope.js'
import { Sticky } from './sticky.js'

/** What one scope's hooks work with. */
interface Setting {
  /** Of the scope around. */
  readonly outer: Setting | undefined
  readonly manager: PoolManager
  readonly plans: Plans
  readonly graces: { readonly abortGrace: number, readonly bodyGrace: number }
}

const kSetting = Symbol('fastify-pool.setting')

declare module 'fastify' {
  interface FastifyInstance { [kSetting]: Setting }
}

async function register (app: FastifyInstance, options: PluginOptions): Promise<void> {
  const checked = checkPluginOptions(options)
  const setting = Object.hasOwn(app, kSetting) ? app[kSetting] : setUp(app, checked)
  for (const name of checked.pools.keys()) setting.manager.checkNew(name)

  // Nothing half-open is left behind: whatever fails, what was made before it is closed.
  const made: Array<PoolFace<unknown>> = []
  try {
    const shares: Share[] = []
    for (const [name, poolOptions] of checked.pools) {
      const { pool, share } = await makePool(app, poolOptions)
      made.push(pool)
      const { bulkhead, sticky, stickyFor } = poolOptions
      setRules(pool, {
        bulkhead: bulkhead && new Bulkhead(pool, { ...poolOptions, bulkhead }),
        sticky: sticky && new Sticky(name, sticky, stickyFor),
      })
      setting.manager.add(name, pool, poolOptions.lease)
      if (share !== undefined) shares.push(share)
    }
    await Promise.all([...checked.pools].map(([, poolOptions], at) => start(app, made[at]!, poolOptions)))
    for (const share of shares) await share()
  } catch (error) {
    await Promise.all(made.map((pool) => pool.close()))
    throw error
  }
}

async function start (app: FastifyInstance, pool: PoolFace<unknown>, { name, startup }: ResolvedPoolOptions): Promise<void> {
  if (startup === 'require') await pool.open()
  if (startup === 'warm') pool.open().catch((err: unknown) => { app.log.child({ pool: name }).error({ err }, 'could not connect at start: acquires will try again') })
}

/** The first registration in a scope: its manager, what requests see, and the hooks. Later ones only add pools. */
function setUp (app: FastifyInstance, { abortGrace, bodyGrace, lease, log }: ResolvedPluginOptions): Setting {
  const outer = kSetting in app ? app[kSetting] : undefined
  let ready = false
  const manager: PoolManager = new PoolManager(outer?.manager, (name, pool, own) => {
    checkRequestName(name)
    const policy = own ?? lease
    checkPolicy(policy, pool)
    // Fastify takes no decorators any more: such a pool is there for `request.acquire(name)`.
    if (ready) return policy === false ? false : { ...policy, acquire: 'manual' }
    if (app.hasRequestDecorator(name)) throw new PoolError('FST_POOL_DUPLICATE_NAME', `request.${name} exists already: give the pool another name`)
    app.decorateRequest(name, { getter (this: FastifyRequest) { return connectionOf(this, name) } })
    return policy
  })
  const setting: Setting = { outer, manager, plans: new Plans(manager), graces: { abortGrace, bodyGrace } }
  app.decorate(kSetting, setting)
  app.decorate('pools', manager)
  // Before any pool opens: what happens then is told, too.
  logEvents(app, manager, log)
  if (outer === undefined) decorateRequests(app)

  app.addHook('onRoute', (route) => { checkRoute(route, manager) })
  app.addHook('onReady', (done) => {
    ready = true
    done()
  })
  addRequestHooks(app, setting)
  // Hooks of a scope run for the scopes inside it: what concerns the request as a whole is done once.
  if (outer === undefined) addEndHooks(app)

  const deadlines: NodeJS.Timeout[] = []
  app.addHook('preClose', (done) => {
    // Requests in flight, and those that wait, are still served.
    manager.drain()
    for (const { pool } of manager.own) deadlines.push(closeInTime(pool))
    done()
  })
  app.addHook('onClose', async () => {
    for (const deadline of deadlines) clearTimeout(deadline)
    for (const { pool } of manager.own) rulesOf(pool).bulkhead?.close()
    await manager.close()
  })
  return setting
}

/**
 * Fastify runs `onClose` when every request has ended, and there are handlers that never do. So the pool closes in time without it, and requests
 * that hold a connection even then are cut off: theirs is destroyed anyway.
 */
function closeInTime (pool: PoolFace<unknown>): NodeJS.Timeout {
  const rest = Math.max(1, Math.min(1000, pool.closeTimeout / 4))
  return setTimeout(() => {
    pool.on('close', ({ holders }) => {
      for (const { holder } of holders) {
        const reply = RequestHolder.requestOf(holder)?.[kReply]
        if (reply && !reply.raw.writableEnded) reply.raw.destroy()
      }
    })
    rulesOf(pool).bulkhead?.close()
    // What fails on the way is told by events.
    pool.close({ timeout: rest }).catch((error: unknown) => { throw error })
  }, pool.closeTimeout - rest).unref()
}

// --- What a request sees ----------------------------------------------------------------------------------------------------------------

function decorateRequests (app: FastifyInstance): void {
  app.decorateRequest(kScope, null)
  app.decorateRequest(kReply, null)
  app.decorateRequest(kSent, null)
  app.decorateRequest('lease', function (this: FastifyRequest, name: string) { return leaseOf(this, name) } as FastifyRequest['lease'])
  app.decorateRequest('transaction', function (this: FastifyRequest, name: string, fn: (connection: unknown) => unknown, options?: RunOptions) {
    return transactionFor(this, name, fn, options)
  } as FastifyRequest['transaction'])
  app.decorateRequest('acquire', function (this: FastifyRequest, name: string, options?: AcquireOptions) { return acquireFor(this, name, options) } as FastifyRequest['acquire'])
}

function connectionOf (request: FastifyRequest, name: string): unknown {
  const connection = request[kScope]?.connection(name)
  if (connection === undefined) throw notLeased(request, name)
  return connection
}

function leaseOf (request: FastifyRequest, name: string): Lease<unknown> {
  const lease = request[kScope]?.lease(name)
  if (lease !== undefined) return lease
  request.server.pools.get(name)
  throw notLeased(request, name)
}

function notLeased (request: FastifyRequest, name: string): PoolError {
  const { method, url } = request.routeOptions
  if (request[kScope]?.isParked(name) === true) {
    return new PoolError('FST_POOL_NOT_LEASED', `the connection of pool '${name}' went back while the body comes in (bodyGrace): use it from preValidation on, or await request.acquire('${name}')`)
  }
  return new PoolError('FST_POOL_NOT_LEASED', `route ${String(method)} ${url ?? ''} has no connection of pool '${name}': name it in config.pools, or await request.acquire('${name}')`)
}

async function acquireFor (request: FastifyRequest, name: string, options?: AcquireOptions): Promise<Lease<unknown>> {
  const { manager, graces } = request.server[kSetting]
  const { pool } = manager.find(name) ?? { pool: manager.get(name) }
  const reply = request[kReply]
  if (reply === null) throw notLeased(request, name)
  const scope = RequestScope.of(request, reply, `${request.method} ${request.routeOptions.url ?? ''}`, graces)
  if (scope === undefined) throw overError()
  const step = policyStep(request, name)
  if (step !== undefined) return scope.acquire(step, options)
  const { method } = request
  return scope.acquire(stepOf(method, { name, pool, release: 'onResponse', role: roleOf(method, pool), transaction: undefined }), options)
}

async function transactionFor (request: FastifyRequest, name: string, fn: (connection: unknown) => unknown, options: RunOptions = {}): Promise<unknown> {
  // Where the request has a connection already, it is that one.
  const lease = await acquireFor(request, name, options.readOnly === true ? {} : { role: 'primary' })
  return await transact(lease, fn, options)
}

/**
 * The step that the route's policy has for a pool. Whoever takes the connection by hand, at whichever moment and with whichever method or header, gets
 * the same one as the hooks do: its transaction above all. Undefined: the policy leaves the pool out, or the pool was added by hand.
 */
function policyStep (request: FastifyRequest, name: string): Step | undefined {
  for (let setting: Setting | undefined = request.server[kSetting]; setting !== undefined; setting = setting.outer) {
    const { onRequest, preHandler, manual } = setting.plans.of(request)
    for (const steps of [onRequest, preHandler, manual]) {
      const step = steps.find((one) => one.name === name)
      if (step !== undefined) return step
    }
  }
  return undefined
}

// --- A request's walk -------------------------------------------------------------------------------------------------------------------
//
// Instance-level hooks see every route, whenever it was declared, and survive `reply.callNotFound()`. They are callbacks: a request whose
// connections are idle waits for no promise.

type Done = (error?: Error) => void

function addRequestHooks (app: FastifyInstance, { graces, plans }: Setting): void {
  app.addHook('onRequest', (request: FastifyRequest, reply: FastifyReply, done: Done) => {
    request[kReply] = reply
    if (request.is404) return done()
    const plan = plans.of(request)
    if (plan.onRequest.length === 0 || (!plan.named && isUnusual(request))) return done()
    const scope = RequestScope.of(request, reply, plan.route, graces)
    if (scope === undefined) {
      reply.code(499)
      return done(overError())
    }
    if (!hasBody(request)) return scope.take(plan.onRequest, done)
    scope.take(plan.onRequest, (error) => {
      if (error === undefined) scope.awaitBody()
      done(error)
    })
  })

  // Right after the body has been read: before any other hook may look for its connection.
  app.addHook('preValidation', (request: FastifyRequest, _reply: FastifyReply, done: Done) => {
    const scope = request[kScope]
    if (scope === null) done()
    else scope.bodyIn(done)
  })

  app.addHook('preHandler', (request: FastifyRequest, reply: FastifyReply, done: Done) => {
    if (!plans.usePreHandler || request.is404) return done()
    const plan = plans.of(request)
    if (plan.preHandler.length === 0 || (!plan.named && isUnusual(request))) return done()
    const scope = RequestScope.of(request, reply, plan.route, graces)
    if (scope !== undefined) return scope.take(plan.preHandler, done)
    reply.code(499)
    done(overError())
  })
}

function addEndHooks (app: FastifyInstance): void {
  let closing = false
  app.addHook('preClose', (done) => {
    closing = true
    done()
  })

  app.addHook('onSend', (request: FastifyRequest, reply: FastifyReply, payload: unknown, done: (error?: Error | null, payload?: unknown) => void) => {
    // A client that keeps its connection open would hold up `app.close()` for `keepAliveTimeout` (72 s; fastify/fastify#7044). HTTP/2 forbids
    // the header, and closes its sessions itself.
    if (closing && request.raw.httpVersionMajor === 1 && !reply.raw.headersSent) reply.header('connection', 'close')
    const scope = request[kScope]
    if (scope !== null) return scope.replying(payload, done)
    RequestScope.replying(request, payload)
    done()
  })

  app.addHook('onError', (request: FastifyRequest, reply: FastifyReply, error: { code?: string }, done: () => void) => {
    // Fastify sets an error's headers only where no error handler of the app's own answers.
    if (error instanceof PoolError && error.headers !== undefined) reply.headers(error.headers)
    request[kScope]?.failing(error)
    done()
  })

  app.addHook('onResponse', (request: FastifyRequest, _reply: FastifyReply, done: () => void) => {
    request[kScope]?.end()
    // For an answer that had begun before the close did.
    if (closing && 'closeIdleConnections' in app.server) setImmediate(() => { app.server.closeIdleConnections() })
    done()
  })
}

/**
 * A CORS preflight, or a socket that Node has given up for an upgrade: it leases only what its route names. A header alone makes no upgrade:
 * without a listener for it Node serves the request as any other, and so do we.
 */
function isUnusual (request: FastifyRequest): boolean {
  const { upgrade } = request.raw as { upgrade?: boolean }
  // The requests of @fastify/websocket's injectWS() are made by hand, without Node's mark; `ws` is what that plugin says of them.
  return request.method === 'OPTIONS' || upgrade === true || (request as { ws?: unknown }).ws === true
}

/** Whether a body is announced. */
function hasBody ({ raw }: FastifyRequest): boolean {
  const { stream } = raw as { stream?: { endAfterHeaders?: boolean } }
  if (stream?.endAfterHeaders !== undefined) return !stream.endAfterHeaders
  const length = raw.headers['content-length']
  return (length !== undefined && length !== '0') || raw.headers['transfer-encoding'] !== undefined
}

/**
 * The plugin: `app.register(pool, options)`. Every request gets a connection of each pool in `onRequest`, as `request.<name>`, and always gives
 * it back; see the README for what can be set.
 *
 * Rejects with `FST_POOL_BAD_OPTIONS`, `FST_POOL_DUPLICATE_NAME`, `FST_POOL_MISSING_DRIVER` or `FST_POOL_CONNECT_FAILED`, and then leaves nothing
 * open.
 */
export const fastifyPool = fp(register, { fastify: '5.x', name: 'fastify-pool' })
