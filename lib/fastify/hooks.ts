import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { PoolError } from '../pool/errors.js'
import { overError } from './request/ending.js'
import { RequestScope, kReply, kScope } from './request/scope.js'
import type { Setting } from './setting.js'

// A request's walk.
//
// Instance-level hooks see every route, whenever it was declared, and survive `reply.callNotFound()`. They are callbacks: a request whose
// connections are idle waits for no promise.

type Done = (error?: Error) => void

export function addRequestHooks (app: FastifyInstance, { graces: { abortGrace, bodyGrace }, plans }: Setting): void {
  app.addHook('onRequest', (request: FastifyRequest, reply: FastifyReply, done: Done) => {
    request[kReply] = reply
    if (request.is404) return done()
    const plan = plans.of(request)
    if (plan.onRequest.length === 0 || (!plan.named && isUnusual(request))) return done()
    const scope = RequestScope.of(request, reply, plan.route, abortGrace)
    if (scope === undefined) {
      reply.code(499)
      return done(overError())
    }
    if (!hasBody(request)) return scope.slots.take(plan.onRequest, done)
    scope.slots.take(plan.onRequest, (error) => {
      if (error === undefined) scope.slots.awaitBody(bodyGrace)
      done(error)
    })
  })

  // Right after the body has been read: before any other hook may look for its connection.
  app.addHook('preValidation', (request: FastifyRequest, _reply: FastifyReply, done: Done) => {
    const scope = request[kScope]
    if (scope === null) done()
    else scope.slots.bodyIn(done)
  })

  app.addHook('preHandler', (request: FastifyRequest, reply: FastifyReply, done: Done) => {
    if (!plans.usePreHandler || request.is404) return done()
    const plan = plans.of(request)
    if (plan.preHandler.length === 0 || (!plan.named && isUnusual(request))) return done()
    const scope = RequestScope.of(request, reply, plan.route, abortGrace)
    if (scope !== undefined) return scope.slots.take(plan.preHandler, done)
    reply.code(499)
    done(overError())
  })
}

export function addEndHooks (app: FastifyInstance): void {
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
