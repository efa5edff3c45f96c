import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { PluginOptions } from '../../types/plugin.js'
import type { PoolFace } from '../../types/pool.js'
import { PoolError } from '../engine/errors.js'
import { makePool, type Share } from './backends.js'
import { decorateConnection, decorateRequests } from './face.js'
import { HealthProbes } from './health.js'
import { addEndHooks, addRequestHooks, preHandlerHook } from './hooks.js'
import { logEvents } from './log/log.js'
import { placeOf, type Place } from './log/place.js'
import {
  checkPluginOptions, checkRequestName, type ResolvedPluginOptions, type ResolvedPoolOptions,
} from './options.js'
import { Plans, checkPolicy, checkRoute, needsPreHandler } from './plan.js'
import { PoolManager, close, type Managed } from './pools.js'
import { RequestHolder } from './request/holder.js'
import { kReply } from './request/scope.js'
import { Bulkhead } from './rules/bulkhead.js'
import { askText } from './rules/keys.js'
import { Sticky } from './rules/sticky.js'
import { kSetting, type Setting } from './setting.js'
import { TenantPool } from './tenants/pool.js'
import { TenantSource } from './tenants/source.js'

async function register (app: FastifyInstance, options: PluginOptions): Promise<void> {
  const checked = checkPluginOptions(options)
  const setting = Object.hasOwn(app, kSetting) ? app[kSetting] : setUp(app, checked)
  for (const name of checked.pools.keys()) setting.manager.checkNew(name)
  // Before any pool opens: what happens then counts, too.
  await addMetrics(app, setting, checked)

  // Whatever fails, the pools that were made before it are closed.
  const made: Array<PoolFace<unknown>> = []
  try {
    const shares: Share[] = []
    for (const [name, poolOptions] of checked.pools) {
      const { pool, share } = await makePool(app, poolOptions)
      made.push(pool)
      const { lease: policy, bulkhead, sticky, stickyFor, affinity } = poolOptions
      setting.manager.add(name, pool, {
        policy,
        source: pool instanceof TenantPool
          ? new TenantSource(pool, poolOptions.tenants!.key)
          : bulkhead && new Bulkhead(pool, { ...poolOptions, bulkhead }),
        sticky: sticky && new Sticky(name, sticky, stickyFor),
        affinityOf: affinity && ((request) => askText(affinity, request, name, 'affinity')),
        places: placesOf(poolOptions),
      })
      if (share !== undefined) shares.push(share)
    }
    await Promise.all([...checked.pools].map(([, poolOptions], at) => start(app, made[at]!, poolOptions)))
    for (const share of shares) await share()
    setting.probes.add(checked.healthRoutes)
  } catch (error) {
    await Promise.all(made.map((pool) => pool.close()))
    throw error
  }
}

async function addMetrics (
  app: FastifyInstance, { manager, ends }: Setting, { otel, prometheus, serverTiming }: ResolvedPluginOptions
): Promise<void> {
  if (serverTiming) {
    const { tellServerTiming } = await import('./metrics/server-timing.js')
    tellServerTiming(app, manager)
  }
  if (otel !== false) {
    const { exportOtel } = await import('./metrics/otel.js')
    ends.push(await exportOtel(manager, otel === true ? undefined : otel.meter))
  }
  if (prometheus !== false) {
    const { exportPrometheus } = await import('./metrics/prometheus.js')
    ends.push(await exportPrometheus(manager, prometheus === true ? undefined : prometheus.register))
  }
}

function placesOf ({ targets, ...options }: ResolvedPoolOptions): Place[] {
  return targets === undefined ? [placeOf(options)] : targets.map((target) => placeOf(target.options))
}

type Starting = Pick<ResolvedPoolOptions, 'name' | 'startup'>

async function start (app: FastifyInstance, pool: PoolFace<unknown>, { name, startup }: Starting): Promise<void> {
  if (startup === 'require') await pool.open()
  if (startup !== 'warm') return
  pool.open().catch((err: unknown) => {
    const { message, code } = err as Partial<Record<'message' | 'code', unknown>>
    app.log.child({ pool: name }).error({ event: 'pool.open', code, cause: message },
      'could not connect at start: acquires will try again')
  })
}

/** The first registration in a scope: its manager, what requests see, and the hooks. Later ones only add pools. */
function setUp (app: FastifyInstance, options: ResolvedPluginOptions): Setting {
  const { lease, log, abortGrace, bodyGrace, replyGrace } = options
  const outer = kSetting in app ? app[kSetting] : undefined
  let ready = false
  const decorated = new Set<string>()
  const manager: PoolManager = new PoolManager(outer?.manager, (name, pool, own) => {
    checkRequestName(name)
    const policy = own ?? lease
    checkPolicy(policy, pool)
    if (!ready && policy !== false && policy.acquire === 'preHandler') forAllRoutes()
    // Fastify takes no decorators once it is ready: a later pool is there for `request.acquire(name)` only.
    if (ready) return policy === false ? false : { ...policy, acquire: 'manual' }
    // A pool of that name was here before, and has been removed.
    if (decorated.has(name)) return policy
    if (app.hasRequestDecorator(name)) {
      throw new PoolError('FST_POOL_DUPLICATE_NAME', `request.${name} exists already: give the pool another name`)
    }
    decorateConnection(app, name)
    decorated.add(name)
    return policy
  })
  const plans = new Plans(manager, outer?.plans)
  const probes = new HealthProbes(app, manager)
  const setting: Setting = { manager, plans, probes, abortGrace, bodyGrace, replyGrace, ends: [] }
  app.decorate(kSetting, setting)
  app.decorate('pools', manager)
  // Before any pool opens: what happens then is logged, too.
  logEvents(app, manager, log)
  if (outer === undefined) decorateRequests(app)

  addRouteChecks(app, setting)
  const forAllRoutes = addPreHandlerHooks(app, setting)
  app.addHook('onReady', (done) => {
    ready = true
    done()
  })
  addRequestHooks(app, setting)
  // Hooks of a scope run for the scopes inside it, too: these are of the request as a whole, and run once.
  if (outer === undefined) addEndHooks(app)

  addCloseHooks(app, setting)
  return setting
}

/**
 * Adds the `preHandler` hook to the routes that need it: in `onRoute`, which does not see routes that were declared
 * before, as the instance's hooks do. Where there are such routes it is a hook of the instance.
 *
 * @returns makes it a hook of the instance, for all routes
 */
function addPreHandlerHooks (app: FastifyInstance, setting: Setting): () => void {
  const hook = preHandlerHook(setting)
  let isAdded = false
  const forAllRoutes = () => {
    if (!isAdded) app.addHook('preHandler', hook)
    isAdded = true
  }
  if (app.printRoutes() !== noRoutes) forAllRoutes()
  app.addHook('onRoute', (route) => {
    if (isAdded || !needsPreHandler(route)) return
    const own = [route.preHandler ?? []].flat() as unknown[]
    if (!own.includes(hook)) route.preHandler = [hook, ...own] as typeof route.preHandler
  })
  return forAllRoutes
}

/** What `printRoutes` prints of an app without routes. */
const noRoutes = '(empty tree)'

/**
 * Checks each route where it is declared. In a scope inside this one pools of its own may still be to come: whether
 * those that its routes name are there is asked when all plugins are loaded.
 */
function addRouteChecks (app: FastifyInstance, setting: Setting): void {
  const later: Array<() => void> = []
  app.addHook('onRoute', function (this: FastifyInstance, route) {
    // A scope with pools of its own inherits this hook, and has one like it.
    if (this[kSetting] !== setting) return
    if (this === app) return checkRoute(route, setting.manager)
    checkRoute(route)
    later.push(() => { checkRoute(route, this[kSetting].manager) })
  })
  app.addHook('onReady', async () => {
    for (const check of later.splice(0)) check()
  })
}

function addCloseHooks (app: FastifyInstance, { manager, ends }: Setting): void {
  const deadlines: NodeJS.Timeout[] = []
  app.addHook('preClose', (done) => {
    // Requests in flight, and those that wait, are still served.
    manager.drain()
    for (const managed of manager.own) deadlines.push(closeInTime(managed))
    done()
  })
  app.addHook('onClose', async () => {
    for (const deadline of deadlines) clearTimeout(deadline)
    await manager.close()
    // A close that hangs is seen in the metrics, too.
    for (const end of ends) end()
  })
}

/**
 * Fastify runs `onClose` when every request has ended, and there are handlers that never do. So the pool closes in time
 * without it, and the responses of requests that hold a connection even then are cut: their connections are destroyed
 * anyway.
 */
function closeInTime (managed: Managed): NodeJS.Timeout {
  const { pool } = managed
  const rest = Math.max(1, Math.min(1000, pool.closeTimeout / 4))
  return setTimeout(() => {
    pool.on('close', ({ holders }) => {
      for (const { holder } of holders) {
        const reply = RequestHolder.requestOf(holder)?.[kReply]
        if (reply && !reply.raw.writableEnded) reply.raw.destroy()
      }
    })
    // A destroy that fails is told by the pool's events: `close` itself does not reject.
    close(managed, { timeout: rest }).catch((error: unknown) => { throw error })
  }, pool.closeTimeout - rest).unref()
}

/**
 * The plugin: `app.register(pool, options)`. Every request gets a connection of each pool in `onRequest`, as
 * `request.<name>`, and always gives it back; see docs/options.md for what can be set.
 *
 * Rejects with `FST_POOL_BAD_OPTIONS`, `FST_POOL_DUPLICATE_NAME`, `FST_POOL_MISSING_DRIVER` or
 * `FST_POOL_CONNECT_FAILED`, and then leaves nothing open.
 */
export const fastifyPool = fp(register, { fastify: '5.x', name: 'fastify-pool' })
