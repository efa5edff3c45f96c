import t, { type Test } from 'tap'
import { startPostgres, startRedis } from '../support/services.js'
import { until } from '../support/until.js'
import { Program } from './child.js'

// Longer than the default `connectTimeout`.
const ms = 3500

const well = { circuit: 'closed', createErrors: 0, destroyed: 0, errors: [], refusals: [] }

async function urlOf (t: Test, backend: string): Promise<string> {
  return backend === 'redis' ? (await startRedis(t)).url : (await startPostgres(t)).url
}

for (const backend of ['postgresql', 'redis']) {
  t.test(`${backend}: an event loop that stands still for ${ms} ms destroys nothing and refuses nobody`, async (t) => {
    const program = new Program(t, 'stall.mjs', { backend, url: await urlOf(t, backend), how: 'block', ms })
    t.same(await program.message('done'), well)
    t.equal((await program.end()).code, 0)
  })

  t.test(`${backend}: neither does a process that is stopped and goes on (SIGSTOP)`, async (t) => {
    const program = new Program(t, 'stall.mjs', { backend, url: await urlOf(t, backend), how: 'stop' })
    await program.message('ready')
    program.kill('SIGSTOP')
    const stopped = performance.now()
    await until(() => performance.now() - stopped > ms, { what: 'it was stopped for long' })
    program.kill('SIGCONT')
    program.send({ go: true })
    t.same(await program.message('done'), well)
    t.equal((await program.end()).code, 0)
  })
}
