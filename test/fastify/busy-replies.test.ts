import { connect as connectHttp2 } from 'node:http2'
import type { FastifyServerOptions } from 'fastify'
import t, { type Test } from 'tap'
import type { Activity } from '../../types/connector.js'
import { answerOf } from '../support/client.js'
import { FakeConnector, type FakeConnection } from '../support/fake-connector.js'
import { Stage, on } from '../support/stage.js'
import { event, until } from '../support/until.js'

// A reply that its client does not read, and a command that still runs when `replyGrace` is over: its handler did not
// wait for it. The next borrower must not meet it.

class Busy extends FakeConnector {
  /** What each connection is doing. */
  readonly doing = new Map<FakeConnection, Activity['doing'] | 'throws'>()

  describe (connection: FakeConnection): Activity | undefined {
    const doing = this.doing.get(connection)
    if (doing === 'throws') throw new Error('the driver does not know')
    return doing && { doing }
  }
}

async function set (t: Test, doing: Activity['doing'] | 'throws' | undefined, connector = new Busy()) {
  const stage = await Stage.set(t, {
    server: { http2: true } as unknown as FastifyServerOptions,
    pool: { connector } as never,
    plugin: { replyGrace: 30 },
    routes: (app) => {
      app.get('/', async (request) => {
        if (doing !== undefined) connector.doing.set(on(request) as never, doing)
        return 'well'
      })
      app.get('/other', async (request) => { on(request); return 'well' })
    },
  })
  // It lets the server send headers, and no data.
  const session = connectHttp2(`http://127.0.0.1:${stage.port}`, { settings: { initialWindowSize: 0 } })
  session.on('error', () => session.destroy())
  t.teardown(() => { session.destroy() })
  await event(session, 'remoteSettings')
  session.request({ ':path': '/' }).on('error', () => {})
  const other = async () => {
    const session = connectHttp2(`http://127.0.0.1:${stage.port}`)
    t.teardown(() => { session.destroy() })
    return await answerOf(session.request({ ':path': '/other' }))
  }
  return { stage, connector, other }
}

for (const { doing, destroyed } of [
  { doing: 'query', destroyed: true }, { doing: 'throws', destroyed: true },
  { doing: 'idle', destroyed: false }, { doing: 'idle in transaction', destroyed: false },
] as const) {
  t.test(`at replyGrace a connection is destroyed where a command runs: ${doing}`, async (t) => {
    const { stage, connector, other } = await set(t, doing)
    const errors: unknown[] = []
    // (The stage's own listeners know no connections but the witness's.)
    stage.pool.on('error', ({ phase }) => { if (phase !== 'listener') errors.push(phase) })
    t.same(await other(), { status: 200, body: 'well' })
    t.equal(connector.connections[0]!.reason, destroyed ? 'aborted' : undefined)
    t.same(errors, doing === 'throws' ? ['describe'] : [])
    t.same(connector.violations, [])
  })
}

t.test('a connection that nobody has read is not asked', async (t) => {
  const { connector, other } = await set(t, undefined)
  t.same(await other(), { status: 200, body: 'well' })
  t.equal(connector.connections.length, 1)
})

t.test('a reply that is read in time leaves a command to the reset', async (t) => {
  const connector = new Busy()
  const { stage, other } = await set(t, undefined, connector)
  await other()
  connector.doing.set(connector.connections[0]!, 'query')
  await other()
  await until(() => stage.pool.stats().idle === 1)
  t.equal(connector.connections.length, 1)
})
