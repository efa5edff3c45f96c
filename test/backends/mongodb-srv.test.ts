import dgram from 'node:dgram'
import dns from 'node:dns'
import { once } from 'node:events'
import t from 'tap'
import { Pool, mongodb } from '../../index.js'
import { failure } from '../support/fake-connector.js'

t.test('mongodb+srv with a name server that does not answer: open fails at connectTimeout, and close does not wait', async (t) => {
  const silent = dgram.createSocket('udp4').bind(0, '127.0.0.1')
  await once(silent, 'listening')
  const servers = dns.getServers()
  dns.setServers([`127.0.0.1:${silent.address().port}`])
  t.teardown(() => { dns.setServers(servers) })
  const connector = await mongodb({ url: 'mongodb+srv://db.fastify-pool.test/shop', connectTimeout: 300 })
  const pool = new Pool(connector, { connectTimeout: 300, closeTimeout: 60_000 })
  const order: string[] = []
  const asked = dns.promises.resolveSrv('_mongodb._tcp.db.fastify-pool.test')
    .catch(() => {}).then(() => { order.push('the name server') })
  t.match(await failure(pool.open()), { code: 'FST_POOL_CONNECT_FAILED' })
  order.push('open')
  await pool.close()
  order.push('close')
  // Questions to a port that nobody listens to end soon.
  silent.close()
  await asked
  t.same(order, ['open', 'close', 'the name server'])
})
