import { Agent, get, type IncomingMessage } from 'node:http'
import { once } from 'node:events'
import t, { type Test } from 'tap'
import { askRedis, startRedis } from '../support/services.js'
import { until } from '../support/until.js'
import { startExample } from './example.js'

// example/sse on a real Redis.

const own = await startRedis(t, { own: true })
const redis = (command: string) => askRedis(new URL(own.url), command)

/** A browser's stream of events. */
async function open (t: Test, url: string) {
  const request = get(url, { agent: new Agent() })
  t.teardown(() => request.destroy())
  const [response] = await once(request, 'response') as [IncomingMessage]
  const stream = { request, response, text: '', ended: false, failed: false }
  response.setEncoding('utf8').on('data', (text: string) => { stream.text += text })
  response.on('end', () => { stream.ended = true }).on('error', () => { stream.failed = true })
  if (response.statusCode === 200) await until(() => stream.text.startsWith(': subscribed\n\n'))
  return stream
}

/** How many connections receive. */
const receiving = async () => [...(await redis('CLIENT LIST')).matchAll(/ sub=[1-9]/g)].length

t.test('a message reaches all in the room, in both processes, over one connection each', async (t) => {
  // Longer than the example's own delay for a close: streams that only the pool's end would end are seen in its exit.
  const env = { REDIS_URL: own.url, CLOSE_TIMEOUT: '600000' }
  const [one, two] = await Promise.all([1, 2].map(() => startExample(t, 'sse/server.js', env)))
  const tea = await Promise.all([one, one, two].map((app) => open(t, `${app!.url}/rooms/tea/events`)))
  const milk = await open(t, `${one!.url}/rooms/milk/events`)
  t.match(tea[0]!.response.headers, { 'content-type': 'text/event-stream' })
  t.equal(await receiving(), 2)
  t.match(await one!.ask('/rooms/tea/messages', { text: 'one\ntwo' }), { status: 202, body: { processes: 2 } })
  await until(() => tea.every(({ text }) => text.includes('data: {"text":"one\\ntwo"}\n\n')))
  t.equal(milk.text, ': subscribed\n\n')
  t.equal((await one!.ask('/rooms/tea/messages', { text: '' })).status, 400)
  t.equal((await one!.ask('/rooms/Tea/events')).status, 400)

  // Whoever leaves is forgotten, though no message comes.
  milk.request.destroy()
  await until(async () => /:0\r\n$/.test(await redis('PUBSUB NUMSUB room:milk')))

  // Open streams hold up no end.
  for (const app of [one, two]) {
    const { code, lines } = await app!.stop()
    t.equal(code, 0)
    t.notMatch(lines.join('\n'), /"level":[456]0/, 'no warning')
  }
  await until(() => tea.every(({ ended }) => ended))
  t.notOk(tea.some(({ failed }) => failed), 'they end as replies do')
  t.equal(await receiving(), 0)
})

t.test('an outage ends the streams, and a new one begins when Redis is back', async (t) => {
  const app = await startExample(t, 'sse/server.js', { REDIS_URL: own.url })
  const before = await open(t, `${app.url}/rooms/tea/events`)
  await own.kill()
  const { response } = await open(t, `${app.url}/rooms/milk/events`)
  t.equal(response.statusCode, 503)
  t.ok(response.headers['retry-after'])
  t.notOk(before.ended, 'an outage may be short')
  await own.restart()
  await until(() => before.ended)
  const after = await open(t, `${app.url}/rooms/tea/events`)
  await until(async () => (await app.ask('/rooms/tea/messages', { text: 'back' })).status === 202)
  await until(() => after.text.includes('data: {"text":"back"}\n\n'))
  const { code, lines } = await app.stop()
  t.equal(code, 0)
  t.match(lines.join('\n'), /"level":40,.*"event":"pool.error".*"phase":"subscription"/)
})
