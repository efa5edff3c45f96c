import t, { type Test } from 'tap'
import type { Connector } from '../../types/connector.js'
import type { PoolFace } from '../../types/pool.js'
import { Pool } from '../../lib/pool/pool.js'
import { TargetPool } from '../../lib/balance/target-pool.js'

/** What answers, and what gives handles. */
class Talk {
  asked: unknown[] = []
  broken = false
  failures = 0

  async echo (...args: unknown[]): Promise<unknown[]> {
    this.asked.push(args)
    if (this.failures-- > 0) throw new Error('gone away')
    return args
  }

  now (): number { return 5 }
  itself (): this { return this }
  nothing (): undefined { return undefined }
  rows (): { [Symbol.asyncIterator] (): unknown } { return { [Symbol.asyncIterator]: () => undefined } }
  async stream (): Promise<{ pipe (): void }> { return { pipe () {} } }
  async statement (): Promise<{ execute (): void }> { return { execute () {} } }
  batch (): { exec (): void, then: unknown } {
    return { exec () {}, then: () => { throw new Error('a batch is not to be awaited') } }
  }
}

function talking (t: Test): { pool: Pool<any>, made: Talk[] } {
  const made: Talk[] = []
  const connector: Connector<Talk> = {
    system: 'talk',
    async create () {
      made.push(new Talk())
      return made.at(-1)!
    },
    destroy (talk) { talk.broken = true },
    isTransient: (error) => error instanceof Error && error.message === 'gone away',
  }
  const pool = new Pool<any>(connector, { max: 1 })
  t.teardown(() => pool.close())
  return { pool, made }
}

t.test('a call gives what the method gives, and the connection goes back', async (t) => {
  const { pool, made } = talking(t)
  t.strictSame(await pool.execute('echo', 1, 'two'), [1, 'two'])
  t.equal(await pool.execute('now'), 5)
  t.equal(await pool.execute('nothing'), undefined)
  t.match(pool.stats(), { used: 0, idle: 1, acquired: 3, created: 1 })
  t.strictSame(made[0]!.asked, [[1, 'two']])
})

t.test('what there is not, and what every object has, is refused by name', async (t) => {
  const { pool } = talking(t)
  for (const method of ['sing', 'asked', 'constructor', 'hasOwnProperty', 'toString', '__proto__', '']) {
    await t.rejects(pool.execute(method),
      { code: 'FST_POOL_NOT_SUPPORTED', message: `execute: there is no call '${method}'` })
  }
  t.match(pool.stats(), { used: 0, idle: 1, created: 1 }, 'and the connection stays')
})

t.test('what lives on the connection is refused, and ends the connection', async (t) => {
  const { pool, made } = talking(t)
  for (const method of ['rows', 'stream', 'statement', 'batch', 'itself']) {
    await t.rejects(pool.execute(method), { code: 'FST_POOL_NOT_SUPPORTED', message: new RegExp(`'${method}' gave`) })
    t.equal(made.at(-1)!.broken, true, `${method}: nobody can use it any more`)
  }
  t.match(pool.stats(), { used: 0, idle: 0, destroyed: { released: 5 } })
})

t.test('the options of the call: its deadline, who it is, and how often it is run again', async (t) => {
  const { pool, made } = talking(t)
  await pool.open()
  made[0]!.failures = 1
  t.strictSame(await pool.execute({ method: 'echo', retry: 1, holder: 'a job' }, 'again'), ['again'])
  t.equal(made.length, 2)
  const held = await pool.acquire()
  await t.rejects(pool.execute({ method: 'echo', timeout: 1 }), { code: 'FST_POOL_ACQUIRE_TIMEOUT' })
  held.release()
  await t.rejects(pool.execute({ method: 'echo', tries: 2 } as never), { code: 'FST_POOL_BAD_OPTIONS', message: /tries/ })
  await t.rejects(pool.execute({} as never), { code: 'FST_POOL_BAD_OPTIONS', message: /method/ })
  await t.rejects(pool.execute(5 as never), { code: 'FST_POOL_BAD_OPTIONS', message: /method/ })
})

t.test('a connector may say what is called; what `wrap` made has its own methods', async (t) => {
  const connector: Connector<Talk> = {
    system: 'talk',
    create: async () => new Talk(),
    destroy () {},
    call: (talk, method) => method === 'shout' ? (text) => talk.echo(String(text).toUpperCase()) : undefined,
  }
  const plain = new Pool<any>(connector)
  const wrapped = new Pool<any>(connector, { wrap: (talk: Talk) => ({ whisper: async () => talk.now() }) })
  const several: PoolFace<any> = new TargetPool<any>([{ connector }, { connector, role: 'replica' }])
  for (const pool of [plain, wrapped, several]) t.teardown(() => pool.close())
  t.strictSame(await plain.execute('shout', 'hey'), ['HEY'])
  await t.rejects(plain.execute('echo', 'hey'), { code: 'FST_POOL_NOT_SUPPORTED' })
  t.equal(await wrapped.execute('whisper'), 5)
  await t.rejects(wrapped.execute('shout', 'hey'), { code: 'FST_POOL_NOT_SUPPORTED' })
  t.strictSame(await several.execute({ method: 'shout', role: 'replica' }, 'hey'), ['HEY'])
})
