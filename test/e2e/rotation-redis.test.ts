import type { Redis } from 'ioredis'
import t from 'tap'
import type { PoolOptions } from '../../index.js'
import { askRedis, startRedis } from '../support/services.js'
import { until } from '../support/until.js'
import { failuresOf, serve } from './failover-redis.js'

t.test('a password that changes while requests run fails none of them, and app.redis knows the new one when it connects again', async (t) => {
  const server = await startRedis(t, { own: true })
  const at = new URL(server.url)
  const admin = (command: string) => askRedis(at, command)
  await admin('ACL SETUSER shop on >first-secret ~* +@all')
  const login = { username: 'shop', password: 'first-secret' }
  const pool: PoolOptions = { backend: 'redis', max: 4, url: server.url, connection: async () => ({ ...login }) }
  const { app, shared, answers, firstAfter, stop } =
    await serve(t, pool, (connection, n) => (connection as Redis).set('written', n))
  const ids = async () =>
    [...(await admin('CLIENT LIST TYPE normal')).matchAll(/^id=(\d+) .* user=shop /gm)].map(([, id]) => id!)
  const before = new Set(await ids())
  for (const [password, old] of [['second-secret', 'first-secret'], ['third-secret', 'second-secret']] as const) {
    await admin(`ACL SETUSER shop >${password}`)
    login.password = password
    app.pools.get('db').evict()
    await admin(`ACL SETUSER shop <${old}`)
    await firstAfter(performance.now())
    await until(() => app.pools.stats().db!.idle > 0)
  }
  const left = await until(async () => {
    const kept = (await ids()).filter((id) => before.has(id))
    return kept.length === 1 && kept
  }, { what: 'all connections are new ones, but for the shared client' })
  await admin(`CLIENT KILL ID ${left[0]}`)
  t.equal(await shared.set('shared', 1), 'OK')
  await stop()
  t.equal(failuresOf(answers), 'none')
})

t.test('a password that is no longer right says so, without it', async (t) => {
  const server = await startRedis(t, { own: true })
  await askRedis(new URL(server.url), 'ACL SETUSER shop on >right-secret ~* +@all')
  const login = { username: 'shop', password: 'right-secret' }
  const { app, stop } =
    await serve(t, { backend: 'redis', max: 2, url: server.url, connection: () => ({ ...login }) },
      (connection, n) => (connection as Redis).set('written', n))
  await stop()
  login.password = 'wrong-secret'
  const told: string[] = []
  app.pools.on('error', ({ error }) => told.push(`${error.stack}`))
  app.pools.get('db').evict()
  const error = await app.pools.get('db').acquire({ timeout: 300 }).catch((error: Error) => error) as Error
  t.match(error.cause, { message: /WRONGPASS/ })
  t.ok(told.length > 0)
  t.notMatch([error.stack, (error.cause as Error).stack, ...told].join(), /wrong-secret|right-secret/)
})
