import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { isPoolError } from '../engine/errors.js'
import type { Plan } from './plan.js'
import { hasBody, isBodyRead } from './request/body.js'
import { isUnusual, overError } from './request/ending.js'
import { RequestScope, kReply, kScope, type OnSendDone } from './request/scope.js'
import type { Setting } from './setting.js'

// A request's walk through Fastify's hooks. They are callbacks: a request whose connections are idle waits for no
// promise. Hooks of the instance see every route, whenever it was declared, and survive `reply.callNotFound()`;
// `preHandler` runs only where something may be left to do.

type Done = (error?: Error) => void
type Hook = (request: FastifyRequest, reply: FastifyReply, done: Done) => void

/** Takes what the plan has for this phase of the request. */
function take (
  setting: Setting, plan: Plan, phase: 'onRequest' | 'preHandler', request: FastifyRequest, reply: FastifyReply,
  done: Done
): void {
  const steps = plan[phase]
  if (steps.length === 0 || (!plan.named && isUnusual(request))) return done()
  const scope = RequestScope.of(request, reply, plan.route, setting)
  if (scope === undefined) {
    reply.code(499)
    return done(overError())
  }
  if (!hasBody(request)) return scope.slots.take(steps, done)
  if (phase === 'preHandler') {
    if (isBodyRead(request)) return scope.slots.take(steps, done)
    scope.slots.leaveToHandler(steps)
    return done()
  }
  scope.slots.take(steps, (error) => {
    if (error === undefined) scope.slots.awaitBody(setting.bodyGrace)
    done(error)
  })
}

export function addRequestHooks (app: FastifyInstance, setting: Setting): void {
  app.addHook('onRequest', onRequestHook(setting))
  // Right after the body has been read: before any other hook may look for its connection.
  app.addHook('preValidation', (request: FastifyRequest, _reply: FastifyReply, done: Done) => {
    const scope = request[kScope]
    if (scope === undefined) done()
    else scope.slots.bodyParsed(done)
  })
}

/**
 * Fastify binds the hooks of an instance for each route anew. So each bound copy is a hook of one route, and keeps the
 * plan of that route: to ask the request for its route costs as much as to lend a connection, since `routeOptions`
 * makes an object each time. Where somebody else calls the hook as it is (a plugin that wraps hooks), it asks.
 */
function onRequestHook (setting: Setting): Hook {
  const { plans } = setting
  const hook: Hook = (request, reply, done) => {
    request[kReply] = reply
    if (request.is404) done()
    else take(setting, plans.of(request), 'onRequest', request, reply, done)
  }
  const bind = (): Hook => {
    let plan: Plan | undefined
    return (request, reply, done) => {
      request[kReply] = reply
      if (request.is404) return done()
      if (plan === undefined || !plans.fits(plan, request)) plan = plans.of(request)
      take(setting, plan, 'onRequest', request, reply, done)
    }
  }
  return Object.defineProperty(hook, 'bind', { value: bind })
}

/**
 * Before the handler: takes what the plan has for this moment, and sees whether a body is left to the handler. Twice it
 * does no harm.
 */
export function preHandlerHook (setting: Setting): Hook {
  const preHandler: Hook = (request, reply, done) => {
    if (request.is404) done()
    else take(setting, setting.plans.of(request), 'preHandler', request, reply, done)
  }
  return (request, reply, done) => {
    const slots = request[kScope]?.slots
    if (slots?.awaitsBody !== true) return preHandler(request, reply, done)
    slots.handlerBegins((error) => {
      if (error === undefined) preHandler(request, reply, done)
      else done(error)
    })
  }
}

/** What concerns the end of a request as a whole: once for an app, whatever scopes register the plugin again. */
export function addEndHooks (app: FastifyInstance): void {
  let closing = false
  app.addHook('preClose', (done) => {
    closing = true
    done()
  })

  app.addHook('onSend', (request: FastifyRequest, reply: FastifyReply, payload: unknown, done: OnSendDone) => {
    // A client that keeps its connection open would hold up `app.close()` for `keepAliveTimeout` (72 s;
    // fastify/fastify#7044). HTTP/2 forbids the header, and closes its sessions itself.
    if (closing && request.raw.httpVersionMajor === 1 && !reply.raw.headersSent) reply.header('connection', 'close')
    const scope = request[kScope]
    if (scope !== undefined) return scope.replying(payload, done)
    RequestScope.replying(request, payload)
    done()
  })

  app.addHook('onError', (request: FastifyRequest, reply: FastifyReply, error: Error, done: () => void) => {
    // Fastify sets an error's headers only where no error handler of the app's own answers.
    if (isPoolError(error) && error.headers !== undefined) reply.headers(error.headers)
    const scope = request[kScope]
    if (scope === undefined) RequestScope.failing(request)
    else scope.failing(error)
    done()
  })

  app.addHook('onResponse', (request: FastifyRequest, _reply: FastifyReply, done: () => void) => {
    request[kScope]?.end()
    // An answer that had begun before `preClose` went out without the header `connection: close`.
    if (closing && 'closeIdleConnections' in app.server) setImmediate(() => { app.server.closeIdleConnections() })
    done()
  })
}
