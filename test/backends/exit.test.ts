import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import t from 'tap'
import type { Test } from 'tap'
import { startMariadb, startPostgres, startRedis } from '../support/services.js'

const index = new URL('../../index.js', import.meta.url).href
const urls = {
  postgresql: (await startPostgres(t)).url,
  mysql: (await startMariadb(t)).url,
  redis: (await startRedis(t)).url,
  sqlite: ':memory:',
}
type Backend = keyof typeof urls

const ask: Record<Backend, string> = {
  postgresql: "connection.query('select pg_sleep(0.3)')",
  mysql: "connection.query('do sleep(0.3)')",
  redis: "connection.blpop('nobody', 0.3)",
  sqlite: "connection.prepare('select 1').get()",
}

/** A script that does not close what it opened. */
function begin (t: Test, script: string): { readonly child: ChildProcess, readonly output: () => string } {
  const child = spawn(process.execPath, [...process.execArgv, '--input-type=module', '-e', script],
    { stdio: ['ignore', 'pipe', 'inherit'] })
  let output = ''
  child.stdout!.setEncoding('utf8').on('data', (text) => { output += String(text) })
  t.teardown(() => { child.kill('SIGKILL') })
  return { child, output: () => output }
}

const bare = (backend: Backend, options: object) => `
  import { Pool, ${backend} } from '${index}'
  const pool = new Pool(await ${backend}({ url: '${urls[backend]}' }), ${JSON.stringify(options)})
  for (let round = 1; round <= 2; round++) {
    await pool.use((connection) => ${ask[backend]})
    console.log('used', round)
    // Until its connections are at rest.
    await new Promise((resolve) => setTimeout(resolve, 700))
  }
  console.log((await pool.health()).status)
`
const plugged = (backend: Backend, options: object) => `
  import Fastify from 'fastify'
  import plugin from '${index}'
  const app = Fastify()
  await app.register(plugin, { pools: { db: ${JSON.stringify({ backend, url: urls[backend], ...(backend !== 'sqlite' && { min: 2 }), ...options })} } })
  app.get('/', async ({ db: connection }) => { await (${ask[backend]}); return 'served' })
  console.log((await app.inject('/')).body)
`

for (const backend of Object.keys(urls) as Backend[]) {
  const both = backend === 'sqlite' ? '' : '; with allowExitOnIdle: false it stays'
  t.test(`${backend}: a script that forgets to close its pool ends, and not before it is done${both}`, async (t) => {
    const stays = both === '' ? undefined : begin(t, bare(backend, { max: 3, allowExitOnIdle: false }))
    while (stays?.output().includes('up') === false) await once(stays.child.stdout!, 'data')
    const { child, output } = begin(t, bare(backend, { max: 3 }))
    const [code] = await once(child, 'exit') as [number]
    t.equal(code, 0)
    t.equal(output(), 'used 1\nused 2\nup\n')
    if (stays !== undefined) t.equal(stays.child.exitCode, null, 'the other one began when it was done')
  })

  t.test(`${backend}: so does one that forgets app.close()`, async (t) => {
    const { child, output } = begin(t, plugged(backend, {}))
    const [code] = await once(child, 'exit') as [number]
    t.equal(code, 0)
    t.equal(output(), 'served\n')
  })
}
