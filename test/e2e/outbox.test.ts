import { once } from 'node:events'
import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { json } from 'node:stream/consumers'
import t, { type Test } from 'tap'
import { askPostgres, startPostgres } from '../support/services.js'
import { until } from '../support/until.js'
import { startExample } from './example.js'

// example/outbox on a real PostgreSQL, with a receiver of ours.

const server = await startPostgres(t)
/** In ms: no worker looks by itself while a test runs. */
const never = '600000'

/** To whom messages are sent. While it `holds`, it does not answer. */
class Receiver {
  readonly items: string[] = []
  readonly keys: unknown[] = []
  /** What it answers to the next requests; else 204. */
  readonly statuses: number[] = []
  holds = false
  readonly #held: ServerResponse[] = []
  url = ''

  constructor (readonly t: Test) {}

  async listen (): Promise<this> {
    const http = createServer((request, response) => {
      this.#received(request.headers['idempotency-key'], json(request), response).catch(this.t.threw)
    }).listen(0, '127.0.0.1')
    this.t.teardown(() => {
      http.close()
      http.closeAllConnections()
    })
    await once(http, 'listening')
    this.url = `http://127.0.0.1:${(http.address() as AddressInfo).port}/`
    return this
  }

  release (): void {
    this.holds = false
    for (const response of this.#held.splice(0)) response.writeHead(204).end()
  }

  async #received (key: unknown, body: Promise<unknown>, response: ServerResponse): Promise<void> {
    const { payload } = await body as { payload: { item: string } }
    this.items.push(payload.item)
    this.keys.push(key)
    if (this.holds) this.#held.push(response)
    else response.writeHead(this.statuses.shift() ?? 204).end()
  }
}

/** A database and a receiver of the test's own, and what starts a process of the example on them. */
async function stage (t: Test, name: string) {
  await askPostgres(server.url, `create database ${name}`, 30_000)
  const url = new URL(server.url)
  url.pathname = `/${name}`
  const receiver = await new Receiver(t).listen()
  const insert = "insert into outbox (topic, payload) select 'test', jsonb_build_object('item', item)"
  return {
    receiver,
    start: (poll = never) =>
      startExample(t, 'outbox/server.js', { DATABASE_URL: url.href, SEND_URL: receiver.url, POLL: poll }),
    ask: (sql: string) => askPostgres(url.href, sql, 30_000),
    /** As another program would write it, without a notification. */
    put: (...items: string[]) => askPostgres(url.href, `${insert} from unnest('{${items.join()}}'::text[]) item`, 30_000),
    isEmpty: () => until(async () => await askPostgres(url.href, 'select count(*) from outbox', 30_000) === '0',
      { what: 'the outbox is empty' }),
  }
}

t.test('an order that is committed is sent once, one that is rolled back is not', async (t) => {
  const { receiver, start, ask, isEmpty } = await stage(t, 'committed')
  const app = await start()
  t.match(await app.ask('/orders', { item: 'tea', quantity: 2 }), { status: 201, body: { id: '1' } })
  t.equal((await app.ask('/orders', { item: 'nothing', quantity: 1 })).status, 409)
  t.equal((await app.ask('/orders', { item: 'coffee', quantity: 0 })).status, 400)
  t.equal((await app.ask('/orders', { item: 'milk', quantity: 1 })).status, 201)
  await isEmpty()
  const { code, lines } = await app.stop()
  t.equal(code, 0)
  t.same(receiver.items, ['tea', 'milk'])
  t.equal(lines.filter((line) => line.includes('"msg":"sent"')).length, 2)
  t.equal(await ask("select string_agg(item, ',' order by id) from orders"), 'tea,milk')
})

t.test('what was there at the start is sent', async (t) => {
  const { receiver, start, put, isEmpty } = await stage(t, 'start')
  t.equal((await (await start()).stop()).code, 0, 'it has made the tables')
  await put('tea', 'milk')
  const app = await start()
  await isEmpty()
  t.same(receiver.items, ['tea', 'milk'])
  t.equal((await app.stop()).code, 0)
})

t.test('a notification wakes the worker', async (t) => {
  const { receiver, start, ask, put, isEmpty } = await stage(t, 'notified')
  const app = await start()
  // Past its first look at the table.
  await app.ask('/orders', { item: 'tea', quantity: 1 })
  await isEmpty()
  await put('milk')
  await ask("notify outbox, '2'")
  await isEmpty()
  t.same(receiver.items, ['tea', 'milk'])
  t.equal((await app.stop()).code, 0)
})

t.test('without a notification the worker looks by itself; what failed is sent again, behind the others', async (t) => {
  const { receiver, start, put, isEmpty } = await stage(t, 'polled')
  const app = await start('20')
  receiver.statuses.push(500)
  await put('tea', 'milk')
  await isEmpty()
  t.same(receiver.items, ['tea', 'milk', 'tea'])
  t.equal(receiver.keys[0], receiver.keys[2], 'the same message')
  t.match((await app.stop()).lines.join('\n'), /the receiver answered 500.*not sent: it is tried again/)
})

t.test('two workers share', async (t) => {
  const { receiver, start, ask, put, isEmpty } = await stage(t, 'shared')
  const apps = await Promise.all([start(), start()])
  receiver.holds = true
  await put('tea', 'milk', 'rice')
  await ask("notify outbox, ''")
  // Each sends one at a time.
  await until(() => receiver.items.length === 2, { what: 'both workers send' })
  receiver.release()
  await isEmpty()
  for (const app of apps) {
    const { code, lines } = await app.stop()
    t.equal(code, 0)
    t.match(lines.join('\n'), /"msg":"sent"/)
  }
  t.same(receiver.items.toSorted(), ['milk', 'rice', 'tea'], 'each once')
})

t.test('at SIGTERM the worker ends what it sends, and nothing else', async (t) => {
  const { receiver, start, ask } = await stage(t, 'ended')
  const app = await start()
  receiver.holds = true
  await app.ask('/orders', { item: 'tea', quantity: 1 })
  await app.ask('/orders', { item: 'milk', quantity: 1 })
  await until(() => receiver.items.length === 1, { what: 'the worker sends' })
  const ended = app.stop()
  await until(() => app.lines.some((line) => line.includes('the outbox ends')), { what: 'it closes' })
  receiver.release()
  const { code, lines } = await ended
  t.equal(code, 0)
  t.notMatch(lines.join('\n'), /"level":[456]0/, 'no warning')
  t.same(receiver.items, ['tea'])
  t.equal(await ask("select string_agg(payload->>'item', ',') from outbox"), 'milk')
})
