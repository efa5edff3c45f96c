// Transactions that their holder ends (`begin`), and what runs behind them (`afterCommit`, `afterRollback`).
import { AsyncLocalStorage } from 'node:async_hooks'
import t from 'tap'
import { TargetPool } from '../../lib/balance/target-pool.js'
import { after } from '../../lib/engine/lease.js'
import { settle } from '../support/clock.js'
import { failure, FakeConnector, fakePool, watch, type FakeConnection } from '../support/fake-connector.js'

const rowsOf = (connector: FakeConnector) => (row: string) => { connector.write(connector.connections[0]!, row) }

t.test('commit stores, rollback undoes, and both give the connection back', async (t) => {
  const { pool, connector } = fakePool({ max: 1 })
  const write = rowsOf(connector)
  const tx = await pool.begin({ isolation: 'serializable' })
  t.equal(tx.connection, connector.connections[0])
  write('a')
  await tx.commit()
  t.equal(pool.stats().used, 0)
  const other = await pool.begin()
  write('b')
  await other.rollback()
  t.same(connector.rows, ['a'])
  t.same(connector.begun, [{ isolation: 'serializable' }, {}])
  for (const ended of [tx, other]) t.throws(() => ended.connection, { code: 'FST_POOL_LEASE_RELEASED' })
  await tx.commit()
  await tx.rollback()
  t.equal((await failure(other.commit())).code, 'FST_POOL_TRANSACTION_ENDED')
  t.match(pool.stats(), { used: 0, idle: 1, released: 2 })
  t.same(connector.violations, [])
})

t.test('`await using` rolls back what was neither committed nor rolled back', async (t) => {
  const { pool, connector } = fakePool({ max: 1 })
  const write = rowsOf(connector)
  {
    await using tx = await pool.begin()
    t.ok(tx.connection)
    write('left')
  }
  t.same(connector.rows, [])
  {
    await using tx = await pool.begin()
    write('stored')
    await tx.commit()
  }
  t.same(connector.rows, ['stored'])
  t.match(pool.stats(), { used: 0, idle: 1 })
})

t.test('what can not begin holds no connection; options are checked before anybody waits', async (t) => {
  const { pool, connector } = fakePool({ max: 1 })
  connector.next.begin = ['error']
  t.equal((await failure(pool.begin())).message, 'begin failed')
  t.match(pool.stats(), { used: 0, idle: 1 })
  const held = await pool.acquire()
  for (const options of [{ isolation: 'none' }, { retry: 2 }, { readOnly: 1 }, { tiemout: 5 }, { commitTimeout: -1 }]) {
    t.equal((await failure(pool.begin(options as never))).code, 'FST_POOL_BAD_OPTIONS', JSON.stringify(options))
  }
  held.release()
  const none = new FakeConnector()
  none.transactions = undefined
  const { pool: without } = fakePool({}, { connector: none })
  t.equal((await failure(without.begin())).code, 'FST_POOL_NOT_SUPPORTED')
  t.equal(none.creates, 0)
})

t.test('a commit that fails gives the connection back all the same', async (t) => {
  const { pool, connector } = fakePool({ max: 1 })
  connector.next.commit = ['error']
  const tx = await pool.begin()
  t.equal((await failure(tx.commit())).message, 'commit failed')
  t.match(pool.stats(), { used: 0, idle: 1 })
  t.equal(connector.depth(connector.connections[0]!), 0)
})

t.test('it is there on several servers, too', async (t) => {
  const connector = new FakeConnector()
  const pool = new TargetPool<FakeConnection>([{ connector }, { connector: new FakeConnector(), role: 'replica' }])
  t.teardown(() => pool.close())
  await using tx = await pool.begin()
  connector.write(tx.connection, 'a')
  await tx.commit()
  t.same(connector.rows, ['a'])
})

t.test('afterCommit runs once, a turn after the commit; afterRollback does not', async (t) => {
  const { pool, connector } = fakePool({ max: 1 })
  connector.outcomes.commit = 'gate'
  const ran: string[] = []
  const tx = await pool.begin()
  tx.afterCommit(() => { ran.push('one') })
  tx.afterCommit(async () => { ran.push('two') })
  tx.afterRollback(() => { ran.push('never') })
  const commit = tx.commit()
  await settle()
  t.same(ran, [])
  connector.pass('commit')
  await commit
  t.same(ran, [], 'nobody waits for it')
  await settle()
  t.same(ran, ['one', 'two'])
  t.throws(() => { tx.afterCommit(() => {}) }, { code: 'FST_POOL_LEASE_RELEASED' })
})

t.test('what is no function is refused at once', async (t) => {
  const { pool } = fakePool({ max: 1 })
  const tx = await pool.begin()
  const message = 'option fn is 7: expected a function'
  t.throws(() => { tx.afterCommit(7 as never) }, { code: 'FST_POOL_BAD_OPTIONS', message })
  t.throws(() => { tx.afterRollback(7 as never) }, { code: 'FST_POOL_BAD_OPTIONS', message })
  await tx.rollback()
})

t.test('afterRollback runs on every way that a transaction is undone, and afterCommit on none', async (t) => {
  const ways: Record<string, (connector: FakeConnector, end: {
    tx: { commit (): Promise<void>, rollback (): Promise<void> }, pool: { evict (options: { used: true }): void },
  }) => unknown> = {
    'a rollback': (_, { tx }) => tx.rollback(),
    'a commit that fails': (connector, { tx }) => {
      connector.next.commit = ['error']
      return tx.commit().catch(() => {})
    },
    'a lease that is revoked': (_, { pool }) => { pool.evict({ used: true }) },
    'a connection that dies, and a rollback that can not be': (connector, { tx }) => {
      connector.connections[0]!.die(new Error('gone'))
      connector.next.rollback = ['error']
      return tx.rollback()
    },
  }
  for (const [name, end] of Object.entries(ways)) {
    const { pool, connector } = fakePool({ max: 1 })
    const ran: string[] = []
    const tx = await pool.begin()
    tx.afterCommit(() => { ran.push('commit') })
    tx.afterRollback(() => { ran.push('rollback') })
    await end(connector, { tx, pool })
    await settle()
    await tx.rollback()
    await settle()
    t.same(ran, ['rollback'], name)
  }
})

t.test('of a commit that nobody knows of, neither runs', async (t) => {
  const { pool, connector } = fakePool({ max: 1 })
  connector.inDoubt = true
  connector.outcomes.commit = 'gate'
  const ran: string[] = []
  const tx = await pool.begin()
  tx.afterCommit(() => { ran.push('commit') })
  tx.afterRollback(() => { ran.push('rollback') })
  const commit = watch(tx.commit())
  await settle()
  connector.fail('commit')
  await settle()
  t.equal(commit.error?.code, 'FST_POOL_COMMIT_UNKNOWN')
  await settle()
  t.same(ran, [])
})

t.test('within a savepoint, it waits for the outermost commit, and goes with the savepoint', async (t) => {
  const { pool } = fakePool({ max: 1 })
  const ran: string[] = []
  const lease = await pool.acquire()
  const note = (what: string) => {
    after(lease, 'afterCommit', () => { ran.push(`stored ${what}`) })
    after(lease, 'afterRollback', () => { ran.push(`undone ${what}`) })
  }
  await lease.transaction(async () => {
    note('outer')
    await lease.transaction(async () => {
      note('kept')
      await lease.transaction(() => { note('inner of kept') })
    })
    await failure(lease.transaction(async () => {
      await lease.transaction(() => { note('inner of undone') })
      note('undone')
      throw new Error('undo this')
    }))
    await settle()
    t.same(ran.splice(0).sort(), ['undone inner of undone', 'undone undone'])
  })
  await settle()
  t.same(ran.splice(0).sort(), ['stored inner of kept', 'stored kept', 'stored outer'])
  note('nothing')
  await settle()
  t.same(ran, ['stored nothing'], 'where none is open, what was written is stored')
  lease.release()
})

t.test('each try of a transaction has its own', async (t) => {
  const { pool, clock } = fakePool({ max: 1 })
  const ran: number[] = []
  const lease = await pool.acquire()
  let tries = 0
  const run = lease.transaction(() => {
    const mine = ++tries
    after(lease, 'afterCommit', () => { ran.push(mine) })
    if (mine < 2) throw new Error('transient')
  }, { retry: 1 })
  await settle()
  await clock.advance(10)
  await run
  await settle()
  t.same([tries, ran], [2, [2]])
  lease.release()
})

t.test('drain and close wait for what runs behind transactions; what it throws is an event', async (t) => {
  const { pool, seen } = fakePool({ max: 1 })
  let done = () => {}
  const tx = await pool.begin()
  tx.afterCommit(() => new Promise<void>((resolve) => { done = resolve }))
  tx.afterCommit(() => { throw new Error('the mail server is away') })
  await tx.commit()
  const drain = watch(pool.drain())
  const close = watch(pool.close())
  await settle()
  await settle()
  t.match(seen('error'), [{ phase: 'afterCommit', error: { message: /the mail server is away/ } }])
  t.match([drain.done, close.done], [false, false])
  done()
  await settle()
  await settle()
  t.match([drain.done, close.done], [true, true])
})

t.test('it runs in the async context of whoever ends the transaction', async (t) => {
  const store = new AsyncLocalStorage<string>()
  const { pool } = fakePool({ max: 1 })
  const seen: unknown[] = []
  await store.run('request', async () => {
    const tx = await pool.begin()
    tx.afterCommit(() => { seen.push(store.getStore()) })
    await tx.commit()
  })
  await settle()
  t.same(seen, ['request'])
})
