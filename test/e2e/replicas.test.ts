import t from 'tap'
import { needsGroup, startPostgresPair } from '../support/topologies.js'
import { until } from '../support/until.js'
import { startExample } from './example.js'

// example/replicas on a real primary and a real replica.

t.test('reads go to the replica, but for the session that has written', needsGroup('PostgreSQL'), async (t) => {
  const { primary, replicas: [replica], caughtUp } = await startPostgresPair(t)
  const { ask, stop } = await startExample(t, 'replicas/server.js',
    { PRIMARY_URL: primary.url, REPLICA_URL: replica!.url })
  const session = { 'x-session': '1' }
  t.match(await ask('/items', { name: 'tea' }, session), { status: 201, body: { id: 1 } })
  t.match(await ask('/items', undefined, session),
    { status: 200, body: [{ name: 'tea', replica: false }] }, 'its own write')
  await caughtUp(replica!)
  // Before it has been asked, the replica serves nobody.
  const items = async () => await ask('/items') as unknown as { status: number, body: Array<{ replica: boolean }> }
  await until(async () => (await items()).body[0]?.replica, { what: 'the replica reads' })
  t.match(await items(), { status: 200, body: [{ name: 'tea', replica: true }] })
  t.match(await ask('/items', { name: 'milk' }, session), { status: 201 })
  t.match(await ask('/items', undefined, session), { status: 200, body: [{ replica: false }, { name: 'milk' }] },
    'whoever writes reads from the primary, though the replica is there')
  t.match(await ask('/count'), { status: 200, body: { items: 2, replica: false } })
  t.match(await ask('/readyz'), { status: 200, body: { status: 'up' } })
  t.equal((await stop()).code, 0)
})
