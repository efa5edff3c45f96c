import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { isPoolError } from '../engine/errors.js'
import { hasBody, isBodyRead } from './request/body.js'
import { isUnusual, overError } from './request/ending.js'
import { RequestScope, kReply, kScope, type OnSendDone } from './request/scope.js'
import type { Setting } from './setting.js'

// A request's walk through Fastify's hooks. They are hooks of the instance: those see every route, whenever it was
// declared, and survive `reply.callNotFound()`. They are callbacks: a request whose connections are idle waits for no
// promise.

type Done = (error?: Error) => void

export function addRequestHooks (app: FastifyInstance, setting: Setting): void {
  const { plans, bodyGrace } = setting

  /** Takes what the plan has for this phase of the request. */
  const take = (request: FastifyRequest, reply: FastifyReply, phase: 'onRequest' | 'preHandler', done: Done): void => {
    const plan = plans.of(request)
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
      if (error === undefined) scope.slots.awaitBody(bodyGrace)
      done(error)
    })
  }

  app.addHook('onRequest', (request: FastifyRequest, reply: FastifyReply, done: Done) => {
    request[kReply] = reply
    if (request.is404) done()
    else take(request, reply, 'onRequest', done)
  })

  // Right after the body has been read: before any other hook may look for its connection.
  app.addHook('preValidation', (request: FastifyRequest, _reply: FastifyReply, done: Done) => {
    const scope = request[kScope]
    if (scope === null) done()
    else scope.slots.bodyParsed(done)
  })

  const preHandler = (request: FastifyRequest, reply: FastifyReply, done: Done): void => {
    if (!plans.usePreHandler || request.is404) done()
    else take(request, reply, 'preHandler', done)
  }

  app.addHook('preHandler', (request: FastifyRequest, reply: FastifyReply, done: Done) => {
    const slots = request[kScope]?.slots
    if (slots?.awaitsBody !== true) return preHandler(request, reply, done)
    slots.handlerBegins((error) => {
      if (error === undefined) preHandler(request, reply, done)
      else done(error)
    })
  })
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
    if (scope !== null) return scope.replying(payload, done)
    RequestScope.replying(request, payload)
    done()
  })

  app.addHook('onError', (request: FastifyRequest, reply: FastifyReply, error: Error, done: () => void) => {
    // Fastify sets an error's headers only where no error handler of the app's own answers.
    if (isPoolError(error) && error.headers !== undefined) reply.headers(error.headers)
    const scope = request[kScope]
    if (scope === null) RequestScope.failing(request)
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
