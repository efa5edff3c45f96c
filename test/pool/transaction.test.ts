import { AsyncLocalStorage, AsyncResource } from 'node:async_hooks'
import t from 'tap'
import type { Lease, RunOptions } from '../../types/pool.js'
import { abandon, hold, transact } from '../../lib/pool/pool.js'
import { settle } from '../support/clock.js'
import type { FakeConnection } from '../support/fake-connector.js'
import { failure, FakeConnector, fakePool, watch } from '../support/fake-connector.js'
import { gate } from '../support/stage.js'

/** A pool of one connection, and its lease. */
async function leased (options: Parameters<typeof fakePool>[0] = {}) {
  const fake = fakePool({ max: 1, ...options })
  const lease = await fake.pool.acquire()
  return {
    ...fake,
    lease,
    connection: lease.connection,
    write: (row: string) => {
      fake.connector.write(fake.connector.connections[0]!, row)
    }
  }
}

const mine = new Error('of fn')

t.test('what fn gives comes through, once the commit has', async (t) => {
  const { lease, connector, connection, write } = await leased()
  connector.outcomes.commit = 'gate'
  const run = watch(lease.transaction(async (inner) => {
    t.equal(inner, connection)
    t.equal(lease.connection, connection)
    await settle()
    write('a')
    return 7
  }))
  await settle()
  await settle()
  t.same(connector.rows, [])
  t.equal(run.done, false)
  connector.outcomes.commit = 'ok'
  connector.pass('commit')
  await settle()
  t.equal(run.value, 7)
  t.same(connector.rows, ['a'])
  t.same(connector.asked, ['begin #1', 'commit #1'])
  t.same(connector.begun, [{}])
  t.equal(await lease.transaction(() => 8, { isolation: 'serializable', readOnly: true, retry: 0 }), 8,
    'fn may be synchronous')
  t.same(connector.begun[1], { isolation: 'serializable', readOnly: true })
  t.equal(lease.ended, false)
  lease.release()
  t.same(connector.violations, [])
})

t.test('when fn throws, at once or later, all is undone and the caller gets that error', async (t) => {
  const { lease, connector, write } = await leased()
  const sync = await failure(lease.transaction(() => {
    write('a')
    throw mine
  }))
  const later = await failure(lease.transaction(async () => {
    write('b')
    await settle()
    throw mine
  }))
  t.equal(sync, mine)
  t.equal(later, mine)
  t.same(connector.rows, [])
  t.same(connector.asked, ['begin #1', 'rollback #1', 'begin #1', 'rollback #1'])
  write('c')
  t.same(connector.rows, ['c'], 'none is open')
  t.equal(lease.ended, false)
})

t.test('a commit that fails is rolled back, and the caller gets its error', async (t) => {
  const { lease, connector, seen, write } = await leased()
  connector.next.commit = ['error', 'throw']
  const error = await failure(lease.transaction(() => { write('a') }))
  t.equal(error.message, 'commit failed')
  t.equal((await failure(lease.transaction(() => {}))).message, 'commit threw')
  t.same(connector.asked, ['begin #1', 'commit #1', 'rollback #1', 'begin #1', 'commit #1', 'rollback #1'])
  t.same(connector.rows, [])
  t.equal(await lease.transaction(() => 1), 1)
  t.same(seen('error'), [])
})

t.test('a rollback that fails destroys the connection, and the caller gets the error of fn', async (t) => {
  const { pool, lease, connector, seen, clock } = await leased({ url: 'fake://me:hunter22@host' })
  connector.outcomes.rollback = 'gate'
  const run = watch(lease.transaction(() => { throw mine }))
  await settle()
  await clock.advance(10)
  connector.fail('rollback', new Error('no: hunter22'))
  await settle()
  t.equal(run.error, mine as unknown)
  t.equal(lease.ended, true)
  t.equal(lease.heldFor, 10)
  t.equal(connector.connections[0]?.reason, 'error')
  t.match(seen('error'), [{ phase: 'rollback', error: { message: 'no: ***' } }])
  t.match(seen('disconnect'), [{ reason: 'error', error: { message: 'no: ***' } }])
  t.match(pool.stats(), { used: 0, idle: 0, closing: 0, acquired: 1, released: 1, destroyed: { error: 1 } })
  const other = await pool.acquire()
  t.equal(other.connection.id, 2)
})

t.test('a rollback behind a commit that failed may fail too: the caller gets the commit\'s error', async (t) => {
  const { lease, connector } = await leased()
  connector.outcomes.commit = 'error'
  connector.outcomes.rollback = 'throw'
  t.equal((await failure(lease.transaction(() => {}))).message, 'commit failed')
  t.equal(connector.connections[0]?.reason, 'error')
})

t.test('a begin that fails leaves the lease as it was', async (t) => {
  const { lease, connector } = await leased()
  connector.next.begin = ['error', 'throw']
  let ran = 0
  t.equal((await failure(lease.transaction(() => { ran++ }))).message, 'begin failed')
  t.equal((await failure(lease.transaction(() => { ran++ }))).message, 'begin threw')
  t.equal(ran, 0)
  t.equal(await lease.transaction(() => 3), 3)
  t.same(connector.asked, ['begin #1', 'begin #1', 'begin #1', 'commit #1'])
})

t.test('a begin that takes longer than acquireTimeout ends the lease', async (t) => {
  for (const [outcome, honoursSignal] of [['gate', true], ['gate', false], ['hang', false]] as const) {
    const { pool, lease, connector, clock, seen } = await leased({ acquireTimeout: 300 })
    connector.outcomes.begin = outcome
    connector.honoursSignal = honoursSignal
    let ran = 0
    const run = watch(lease.transaction(() => { ran++ }))
    await clock.advance(299)
    t.equal(run.done, false)
    const { signal } = connector.calls[0]!
    t.equal(signal!.aborted, false)
    await clock.advance(1)
    t.equal(signal!.aborted, true)
    t.match(run.error,
      { code: 'FST_POOL_ACQUIRE_TIMEOUT', message: "a transaction on pool 'db' did not begin within 300 ms: its connection was destroyed" })
    t.equal(lease.ended, true)
    t.equal(lease.heldFor, 300)
    t.equal(connector.connections[0]?.reason, 'error')
    t.match(seen('error'), [{ phase: 'begin' }])
    t.match(pool.stats(), { used: 0, acquired: 1, released: 1 })
    // The late answer has an owner: nothing comes of it.
    for (const call of connector.calls.slice()) call.pass()
    await settle()
    t.equal(ran, 0)
    t.same(connector.violations, [])
  }
})

t.test('a rollback that takes longer than resetTimeout ends the lease, and the caller gets the error of fn', async (t) => {
  const { pool, lease, connector, clock, seen } = await leased({ resetTimeout: 200 })
  connector.outcomes.rollback = 'hang'
  const run = watch(lease.transaction(() => { throw mine }))
  await clock.advance(199)
  t.equal(run.done, false)
  await clock.advance(1)
  t.equal(run.error, mine as unknown)
  t.equal(lease.ended, true)
  t.equal(connector.connections[0]?.reason, 'error')
  t.match(seen('error'),
    [{ phase: 'rollback', error: { message: 'a transaction was not rolled back within 200 ms (resetTimeout)' } }])
  t.match(pool.stats(), { used: 0, acquired: 1, released: 1, destroyed: { error: 1 } })
})

t.test('who listens to the error of a transaction may end the lease', async (t) => {
  for (const [how, outcome] of [['release', 'hang'], ['destroy', 'hang'], ['release', 'error'], ['destroy', 'error']] as const) {
    const { pool, lease, connector, clock } = await leased({ resetTimeout: 200, acquireTimeout: 200 })
    pool.on('error', () => { lease[how]() })
    connector.next.rollback = [outcome]
    const run = watch(lease.transaction(() => { throw mine }))
    await clock.advance(500)
    t.equal(run.error, mine as unknown)
    t.match(pool.stats(), { used: 0, closing: 0, acquired: 1, released: 1 })
    t.same(connector.violations, [])
    const next = await pool.acquire()
    connector.outcomes.begin = 'hang'
    const begins = watch(next.transaction(() => {}))
    pool.on('error', () => { next[how]() })
    await clock.advance(500)
    t.equal(begins.error?.code, 'FST_POOL_ACQUIRE_TIMEOUT')
    t.match(pool.stats(), { used: 0, closing: 0, acquired: 2, released: 2 })
    t.same(connector.violations, [])
  }
})

// --- Within each other -----------------------------------------------------------------------------------------------

t.test('within a transaction one is a savepoint, as deep as wanted, and its rollback undoes only what is in it', async (t) => {
  const { lease, connector, write } = await leased()
  await lease.transaction(async (one) => {
    write('1')
    await failure(lease.transaction(async (two) => {
      t.equal(two, one)
      write('2')
      t.equal(await lease.transaction(() => {
        write('3')
        return 'inner'
      }, { retry: 0 }), 'inner')
      throw mine
    }))
    await lease.transaction(async () => {
      write('4')
      await failure(lease.transaction(() => {
        write('5')
        throw mine
      }))
      await lease.transaction(() => { write('6') })
    })
  })
  t.same(connector.rows, ['1', '4', '6'])
  t.same(connector.asked, [
    'begin #1', 'savepoint fastify_pool_1 #1', 'savepoint fastify_pool_2 #1', 'commit fastify_pool_2 #1',
    'rollback fastify_pool_1 #1',
    'savepoint fastify_pool_1 #1', 'savepoint fastify_pool_2 #1', 'rollback fastify_pool_2 #1',
    'savepoint fastify_pool_2 #1',
    'commit fastify_pool_2 #1', 'commit fastify_pool_1 #1', 'commit #1',
  ])
  t.same(connector.violations, [])
})

t.test('a savepoint that can\'t be set, or released, fails its own call only', async (t) => {
  const { lease, connector, write } = await leased()
  connector.next.savepoint = ['error']
  connector.next.commit = ['error']
  await lease.transaction(async () => {
    write('1')
    t.equal((await failure(lease.transaction(() => { write('2') }))).message, 'savepoint failed')
    t.equal((await failure(lease.transaction(() => { write('3') }))).message, 'commit failed')
    await lease.transaction(() => { write('4') })
  })
  t.same(connector.rows, ['1', '4'])
  t.same(connector.violations, [])
})

t.test('a savepoint that can\'t be undone ends the lease: what it was in is not committed', async (t) => {
  const { lease, connector, write } = await leased()
  connector.outcomes.rollback = 'error'
  const error = await failure(lease.transaction(async () => {
    write('1')
    t.equal(await failure(lease.transaction(() => { throw mine })), mine)
    return 'fine'
  }))
  t.equal(error.code, 'FST_POOL_LEASE_RELEASED')
  t.equal(error.message, "a transaction on pool 'db' was not committed: its lease has ended")
  t.same(connector.rows, [])
})

t.test('a savepoint has the deadline of a begin', async (t) => {
  const { lease, connector, clock } = await leased({ acquireTimeout: 300 })
  connector.outcomes.savepoint = 'hang'
  const run = watch(lease.transaction(() => lease.transaction(() => {})))
  await clock.advance(300)
  t.equal(run.error?.code, 'FST_POOL_ACQUIRE_TIMEOUT')
  t.equal(connector.connections[0]?.reason, 'error')
})

t.test('side by side are two transactions, one after the other, and one\'s failure does not touch the other', async (t) => {
  const { lease, connector, write } = await leased()
  const order: string[] = []
  const run = (row: string, error?: Error) => lease.transaction(async () => {
    order.push(`${row} begins`)
    write(row)
    await settle()
    order.push(`${row} ends`)
    if (error !== undefined) throw error
    return row
  })
  t.same(await Promise.allSettled([run('a'), run('b', mine), run('c')]), [
    { status: 'fulfilled', value: 'a' }, { status: 'rejected', reason: mine }, { status: 'fulfilled', value: 'c' },
  ])
  t.same(order, ['a begins', 'a ends', 'b begins', 'b ends', 'c begins', 'c ends'])
  t.same(connector.rows, ['a', 'c'])
  t.same(connector.asked, ['begin #1', 'commit #1', 'begin #1', 'rollback #1', 'begin #1', 'commit #1'])
  t.same(connector.violations, [])
})

t.test('side by side within one they are savepoints, one after the other', async (t) => {
  const { lease, connector, write } = await leased()
  await lease.transaction(async () => {
    const run = (row: string, error?: Error) => lease.transaction(async () => {
      write(row)
      await settle()
      if (error !== undefined) throw error
    })
    t.match(await Promise.allSettled([run('a'), run('b', mine), run('c')]),
      [{ status: 'fulfilled' }, { reason: mine }, { status: 'fulfilled' }])
  })
  t.same(connector.rows, ['a', 'c'])
  const [first, second] = ['savepoint fastify_pool_1 #1', 'commit fastify_pool_1 #1']
  t.same(connector.asked, ['begin #1', first, second, first, 'rollback fastify_pool_1 #1', first, second, 'commit #1'])
  t.same(connector.violations, [])
})

t.test('one that nobody waits for is done before what it is in is committed, or undone', async (t) => {
  const { lease, connector, write } = await leased()
  const inner: Array<Promise<unknown>> = []
  const later = () => {
    inner.push(lease.transaction(async () => {
      await settle()
      write('inner')
      // And what that one began meanwhile.
      inner.push(lease.transaction(async () => {
        await settle()
        write('innermost')
      }))
    }))
  }
  await lease.transaction(() => { later() })
  t.same(connector.rows, ['inner', 'innermost'])
  t.equal(await failure(lease.transaction(() => {
    later()
    throw mine
  })), mine)
  t.same(connector.rows, ['inner', 'innermost'])
  t.same(connector.asked.slice(-1), ['rollback #1'])
  await Promise.all(inner)
  t.same(connector.violations, [])
})

t.test('one that begins while another ends comes after it', async (t) => {
  const { lease, connector } = await leased()
  connector.outcomes.commit = 'gate'
  let late: Promise<number> | undefined
  const begin = gate()
  const first = watch(lease.transaction(() => {
    late = begin.opened.then(() => lease.transaction(() => 2))
  }))
  await settle()
  begin.open()
  await settle()
  t.same(connector.asked, ['begin #1', 'commit #1'])
  connector.outcomes.commit = 'ok'
  connector.pass('commit')
  t.equal(await late, 2)
  t.equal(first.done, true)
  t.same(connector.asked, ['begin #1', 'commit #1', 'begin #1', 'commit #1'])
})

t.test('one called from within another that is over is a savepoint in what that one was in', async (t) => {
  const { lease, connector, clock, write } = await leased({ acquireTimeout: 300 })
  const go = gate()
  const run = watch(lease.transaction(async () => {
    let late: Promise<unknown> | undefined
    await lease.transaction(() => { late = go.opened.then(() => lease.transaction(() => { write('late') })) })
    go.open()
    await late
  }))
  await clock.advance(400)
  t.equal(run.error, undefined)
  t.same(connector.rows, ['late'])
  t.same(connector.asked.slice(-3), ['savepoint fastify_pool_1 #1', 'commit fastify_pool_1 #1', 'commit #1'])
})

t.test('a call whose async context was lost waits acquireTimeout, and is told why', async (t) => {
  const { lease, connector, clock, write } = await leased({ acquireTimeout: 300 })
  const lost = new AsyncResource('A_CALLBACK_FROM_ELSEWHERE')
  const run = watch(lease.transaction(async () => {
    write('outer')
    return await failure(lost.runInAsyncScope(() => lease.transaction(() => { write('inner') })))
  }))
  await clock.advance(299)
  t.equal(run.done, false)
  t.ok(clock.timers.ref > 0, 'the process stays alive for it')
  await clock.advance(1)
  t.match(run.value, {
    code: 'FST_POOL_ACQUIRE_TIMEOUT',
    message: "a transaction on pool 'db' waited 300 ms for another one on the same connection. " +
      'If it was called within that one, its async context was lost on the way: call it from the function itself, not from a callback.',
  })
  t.same(connector.rows, ['outer'], 'and the other one goes on')
  t.same(connector.asked, ['begin #1', 'commit #1'])
  await clock.advance(200)
  t.equal(clock.timers.ref, 0)
})

t.test('on another lease a transaction is another one, and within that the first one\'s are still savepoints', async (t) => {
  const { pool, connector, clock } = fakePool({ max: 2, acquireTimeout: 300 })
  const [one, two] = await Promise.all([pool.acquire(), pool.acquire()])
  const run = watch(one.transaction(() => two.transaction(() => one.transaction(() => two.transaction(() => 5)))))
  await clock.advance(400)
  t.equal(run.value, 5)
  t.same(connector.asked, [
    'begin #1', 'begin #2', 'savepoint fastify_pool_1 #1', 'savepoint fastify_pool_1 #2',
    'commit fastify_pool_1 #2', 'commit fastify_pool_1 #1', 'commit #2', 'commit #1',
  ])
})

// --- Options ---------------------------------------------------------------------------------------------------------

t.test('what a database has not is refused by name', async (t) => {
  const connector = new FakeConnector()
  delete connector.transactions
  const { pool } = fakePool({}, { connector })
  const lease = await pool.acquire()
  for (const error of [
    await failure(lease.transaction(() => {})),
    await failure(pool.transaction(() => {})),
    await failure(hold(lease, {})),
  ]) {
    t.match(error, { code: 'FST_POOL_NOT_SUPPORTED', message: "pool 'db' has no transactions" })
  }
  t.equal(lease.ended, false)
  t.match(pool.stats(), { used: 1 })
})

t.test('a transaction within another is refused where the database has no savepoints', async (t) => {
  const { lease, connector, write } = await leased()
  connector.nests = false
  await lease.transaction(async () => {
    t.match(await failure(lease.transaction(() => { write('inner') })), {
      code: 'FST_POOL_NOT_SUPPORTED', message: "pool 'db' has no transactions within transactions",
    })
    write('outer')
  })
  t.same(connector.rows, ['outer'])
})

t.test('options are refused by name, with what was given and what is expected', async (t) => {
  const { pool, lease, connector } = await leased({ acquireTimeout: 100 })
  const refused = async (options: object, message: string) => {
    t.match(await failure(lease.transaction(() => t.fail('it ran'), options)),
      { code: 'FST_POOL_BAD_OPTIONS', message })
    t.match(await failure(pool.transaction(() => t.fail('it ran'), options)), { code: 'FST_POOL_BAD_OPTIONS', message },
      'before it waits for a connection')
    if (!('retry' in options)) t.match(await failure(hold(lease, options)), { code: 'FST_POOL_BAD_OPTIONS', message })
  }
  await refused({ isolation: 'snapshot' },
    "option isolation is 'snapshot': expected 'read committed' or 'serializable'")
  await refused({ isolation: 1 }, "option isolation is 1: expected 'read committed' or 'serializable'")
  await refused({ readOnly: 'yes' }, "option readOnly is 'yes': expected true or false")
  await refused({ retry: -1 }, 'option retry is -1: expected an integer of at least 0')
  await refused({ retry: 1.5 }, 'option retry is 1.5: expected an integer of at least 0')
  await refused({ retry: Infinity }, 'option retry is Infinity: expected an integer of at least 0')
  await refused({ isolationLevel: 'serializable' },
    'unknown option isolationLevel of a transaction: expected isolation, readOnly, commitTimeout or retry')
  await refused({ commitTimeout: -1 },
    'option commitTimeout is -1: expected a number of milliseconds from 0 to 2147483647')
  await refused({ commitTimeout: '1s' },
    "option commitTimeout is '1s': expected a number of milliseconds from 0 to 2147483647")
  await refused({ commitTimeout: NaN },
    'option commitTimeout is NaN: expected a number of milliseconds from 0 to 2147483647')
  await refused({ commitTimeout: 2 ** 31 },
    'option commitTimeout is 2147483648: expected a number of milliseconds from 0 to 2147483647')
  connector.transactions = { ...connector.transactions!, isolation: [], readOnly: false }
  t.equal(await lease.transaction(() => 1), 1)
  await lease.transaction(async () => {
    const nested = async (options: object, message: string) => {
      t.match(await failure(lease.transaction(() => t.fail('it ran'), options)),
        { code: 'FST_POOL_BAD_OPTIONS', message })
    }
    await nested({ isolation: 'serializable' },
      "option isolation is 'serializable': expected none for a transaction within another")
    await nested({ readOnly: true }, 'option readOnly is true: expected none for a transaction within another')
    await nested({ commitTimeout: 5 }, 'option commitTimeout is 5: expected none for a transaction within another')
    await nested({ retry: 2 }, 'option retry is 2: expected none for a transaction within another')
    t.equal(await lease.transaction(() => 2, { isolation: undefined, readOnly: false, retry: 0 }), 2)
  })
  lease.release()
  const { pool: plain, connector: other } = fakePool({ name: 'plain' })
  other.transactions = { ...other.transactions!, isolation: [], readOnly: false }
  t.equal((await failure(plain.transaction(() => {}, { isolation: 'serializable' }))).message,
    "option isolation is 'serializable': expected none: the database has one level only")
  t.equal((await failure(plain.transaction(() => {}, { readOnly: true }))).message,
    "option readOnly is true: expected none: pool 'plain' has no transactions that only read")
  t.equal(await plain.transaction(() => 3, { readOnly: false, isolation: undefined, retry: undefined }), 3)
})

// --- Retry -----------------------------------------------------------------------------------------------------------

t.test('what others were in the way of is run again, in a new transaction, at most as often as asked for', async (t) => {
  const { lease, connector, clock, write } = await leased()
  let ran = 0
  const pauses: number[] = []
  let last = clock.now()
  const run = watch(lease.transaction(async () => {
    pauses.push(clock.now() - last)
    last = clock.now()
    ran++
    write(`try ${ran}`)
    throw new Error(`transient ${ran}`)
  }, { retry: 10, isolation: 'serializable' }))
  for (let i = 0; i < 100; i++) await clock.advance(100)
  t.equal(run.error?.message, 'transient 11')
  t.equal(ran, 11)
  t.same(connector.rows, [])
  t.same(connector.begun, Array.from({ length: 11 }, () => ({ isolation: 'serializable' })))
  t.equal(pauses[0], 0)
  for (const [i, pause] of pauses.slice(1).entries()) {
    t.ok(pause <= Math.ceil(Math.min(500, 4 * 2 ** i)),
    `pause ${i} is ${pause}`)
  }
  t.ok(new Set(pauses.slice(8)).size > 1, `the longest ones differ: ${pauses.join()}`)
  t.ok(pauses.at(-1)! > 100 || pauses.at(-2)! > 100, `and grow: ${pauses.join()}`)
})

t.test('the pauses between tries come from the clock\'s chance', async (t) => {
  const { lease, clock } = await leased()
  clock.random = () => 0.5
  const at: number[] = []
  watch(lease.transaction(() => {
    at.push(clock.now())
    throw new Error('transient')
  }, { retry: 9 }))
  for (let i = 0; i < 10; i++) await clock.advance(500)
  t.same(at.map((now, i) => now - (at[i - 1] ?? 0)), [0, 2, 4, 8, 16, 32, 64, 128, 250, 250])
})

t.test('a commit that others were in the way of is run again too, and what comes of the last try is what the caller gets', async (t) => {
  const { lease, connector, clock, write } = await leased()
  connector.outcomes.commit = 'gate'
  let ran = 0
  const run = watch(lease.transaction(() => {
    write(`try ${++ran}`)
    return ran
  }, { retry: 1 }))
  await settle()
  connector.fail('commit', new Error('transient'))
  await clock.advance(10)
  connector.pass('commit')
  await settle()
  t.equal(run.value, 2)
  t.same(connector.rows, ['try 2'])
  t.same(connector.asked, ['begin #1', 'commit #1', 'rollback #1', 'begin #1', 'commit #1'])
})

t.test('a savepoint is not run again: the whole is', async (t) => {
  const { lease, connector, clock } = await leased()
  const ran = { outer: 0, inner: 0 }
  const run = watch(lease.transaction(async () => {
    ran.outer++
    return await lease.transaction(() => {
      if (++ran.inner < 3) throw new Error('transient')
      return 'done'
    })
  }, { retry: 5 }))
  for (let i = 0; i < 5; i++) await clock.advance(10)
  t.equal(run.value, 'done')
  t.same(ran, { outer: 3, inner: 3 })
  t.equal(connector.begun.length, 3)
  t.same(connector.violations, [])
})

t.test('other errors are not run again, nor is anything without being asked', async (t) => {
  const { lease, connector } = await leased()
  let ran = 0
  t.equal(await failure(lease.transaction(() => {
    ran++
    throw mine
  }, { retry: 5 })), mine)
  t.equal(ran, 1)
  t.equal((await failure(lease.transaction(() => {
    ran++
    throw new Error('transient')
  }))).message, 'transient')
  t.equal(ran, 2)
  t.equal(connector.begun.length, 2)
})

t.test('nothing is run again once the lease has ended', async (t) => {
  for (const when of ['within', 'rollback', 'pause'] as const) {
    const { pool, lease, connector, clock } = await leased()
    clock.random = () => 0.9
    let ran = 0
    const run = watch(lease.transaction(() => {
      ran++
      if (when === 'within') lease.destroy()
      throw new Error('transient')
    }, { retry: 5 }))
    if (when === 'rollback') connector.onAsked = (what) => { if (what === 'rollback #1') lease.destroy() }
    await settle()
    if (when === 'pause') {
      lease.release()
      t.match(pool.stats(), { idle: 1 }, 'between two tries nothing is open')
    }
    await clock.advance(1000)
    t.equal(run.error?.message, 'transient')
    t.equal(ran, 1, when)
    t.equal(connector.begun.length, 1)
    t.same(connector.violations, [])
  }
})

// --- The lease's end -------------------------------------------------------------------------------------------------

t.test('a lease released within its transaction is rolled back before the next borrower, and never committed', async (t) => {
  for (const reset of ['session', 'transaction', 'none'] as const) {
    const released: unknown[] = []
    const { pool, lease, connector, write } = await leased({
      reset, onRelease: (connection, info) => { released.push([connector.depth(connection), info.holder]) },
    })
    connector.outcomes.rollback = 'gate'
    const go = gate()
    const run = watch(lease.transaction(async () => {
      write('a')
      lease.release()
      await go.opened
      return 1
    }))
    const next = watch(pool.acquire())
    await settle()
    t.equal(next.done, false, 'it waits for the rollback')
    t.match(pool.stats(), { used: 1, pending: 1 })
    t.same(released, [])
    connector.pass('rollback')
    await settle()
    t.same(released, [[0, undefined]], 'onRelease runs behind it')
    t.equal(next.value?.connection.id, 1)
    go.open()
    await settle()
    t.match(run.error,
      { code: 'FST_POOL_LEASE_RELEASED', message: "a transaction on pool 'db' was not committed: its lease has ended" })
    t.same(connector.rows, [])
    t.same(connector.asked, ['begin #1', 'rollback #1'])
    t.equal(await next.value?.transaction(() => 2), 2, 'the next one has transactions of its own')
    t.same(connector.violations, [])
  }
})

t.test('what fn of a released lease throws is what the caller gets, and nothing more is done to the connection', async (t) => {
  const { pool, lease, connector } = await leased()
  const error = await failure(lease.transaction(async () => {
    lease.release()
    await settle()
    throw mine
  }))
  t.equal(error, mine)
  t.same(connector.asked, ['begin #1', 'rollback #1'])
  t.match(pool.stats(), { idle: 1 })
})

t.test('within a transaction whose lease has ended nothing begins', async (t) => {
  const { pool, lease, connector } = await leased()
  const error = await failure(lease.transaction(async () => {
    lease.release()
    t.equal((await failure(lease.transaction(() => {}))).code, 'FST_POOL_LEASE_RELEASED')
    t.equal((await failure(hold(lease, {}))).code, 'FST_POOL_LEASE_RELEASED')
    t.match(await failure(pool.transaction(() => t.fail('it ran'))), {
      code: 'FST_POOL_LEASE_RELEASED', message: "a transaction on pool 'db' was not committed: its lease has ended",
    })
  }))
  t.equal(error.code, 'FST_POOL_LEASE_RELEASED')
  t.same(connector.asked, ['begin #1', 'rollback #1'])
})

t.test('who waits for a turn on a lease that ends is told so', async (t) => {
  const { lease, connector, clock } = await leased({ acquireTimeout: 300 })
  const go = gate()
  const first = watch(lease.transaction(() => go.opened))
  const second = watch(lease.transaction(() => t.fail('it ran')))
  await settle()
  lease.release()
  await clock.advance(300)
  t.equal(second.error?.code, 'FST_POOL_LEASE_RELEASED')
  go.open()
  await settle()
  t.equal(first.error?.code, 'FST_POOL_LEASE_RELEASED')
  t.same(connector.violations, [])
})

t.test('a rollback behind the end of a lease has resetTimeout, and its failure destroys the connection', async (t) => {
  for (const outcome of ['hang', 'gate', 'error', 'throw'] as const) {
    let released = 0
    const { pool, lease, connector, clock, seen } = await leased({ resetTimeout: 200, onRelease: () => { released++ } })
    connector.outcomes.rollback = outcome
    const run = watch(lease.transaction(() => { lease.release() }))
    await clock.advance(200)
    t.equal(run.error?.code, 'FST_POOL_LEASE_RELEASED')
    t.equal(connector.connections[0]?.reason, 'error')
    t.match(seen('error'), [{ error: { code: 'FST_POOL_RESET_FAILED' } }])
    // Where it answers late.
    for (const call of connector.calls.slice()) call.pass()
    await settle()
    t.equal(released, 0, 'onRelease gets no connection that is gone')
    t.match(pool.stats(), { used: 0, closing: 0, destroyed: { error: 1 } })
    t.same(connector.violations, [])
  }
})

t.test('a lease destroyed within its transaction takes the connection along', async (t) => {
  for (const end of [
    (lease: Lease<FakeConnection>) => { lease.destroy() }, (lease: Lease<FakeConnection>) => { abandon(lease) },
  ]) {
    const { pool, lease, connector, write } = await leased()
    const error = await failure(lease.transaction(async () => {
      write('a')
      end(lease)
      await settle()
      return 1
    }))
    t.equal(error.code, 'FST_POOL_LEASE_RELEASED')
    t.equal(connector.connections[0]?.state, 'destroyed')
    t.same(connector.asked, ['begin #1'])
    t.same(connector.rows, [])
    t.match(pool.stats(), { used: 0, released: 1 })
    t.same(connector.violations, [])
  }
})

t.test('a lease whose connection died is not rolled back', async (t) => {
  const { lease, connector } = await leased()
  const error = await failure(lease.transaction(async () => {
    connector.connections[0]!.broken = true
    lease.release()
  }))
  t.equal(error.code, 'FST_POOL_LEASE_RELEASED')
  t.same(connector.asked, ['begin #1'])
  t.equal(connector.connections[0]?.reason, 'error')
})

t.test('a begin under way when its lease is released is waited for and undone, and fn does not run', async (t) => {
  const { pool, lease, connector } = await leased()
  connector.outcomes.begin = 'gate'
  const run = watch(lease.transaction(() => t.fail('it ran')))
  await settle()
  lease.release()
  const next = watch(pool.acquire())
  await settle()
  t.same([run.done, next.done], [false, false])
  connector.pass('begin')
  await settle()
  t.equal(run.error?.code, 'FST_POOL_LEASE_RELEASED')
  t.equal(next.done, true)
  t.same(connector.asked, ['begin #1', 'rollback #1'])
  t.same(connector.violations, [])
})

t.test('a begin that fails behind the end of its lease leaves a clean connection', async (t) => {
  const { pool, lease, connector } = await leased()
  connector.outcomes.begin = 'gate'
  const run = watch(lease.transaction(() => t.fail('it ran')))
  await settle()
  lease.release()
  connector.fail('begin')
  await settle()
  t.equal(run.error?.message, 'begin failed')
  t.match(pool.stats(), { idle: 1 })
  t.same(connector.asked, ['begin #1'])
})

t.test('a begin or commit that never comes back is waited for until resetTimeout where its lease was released, and not at all where it was destroyed', async (t) => {
  for (const method of ['begin', 'savepoint', 'commit', 'rollback'] as const) {
    for (const end of ['release', 'destroy', 'abandon'] as const) {
      let released = 0
      const { pool, lease, connector, clock } = await leased({ resetTimeout: 200, onRelease: () => { released++ } })
      connector.outcomes[method] = 'hang'
      const run = watch(lease.transaction(async () => {
        if (method === 'rollback') throw mine
        if (method === 'savepoint') await lease.transaction(() => t.fail('it ran'))
      }))
      await settle()
      end === 'abandon' ? abandon(lease) : lease[end]()
      if (end === 'release') {
        await clock.advance(199)
        t.same([run.done, pool.stats().used], [false, 1], `${method}, ${end}`)
        await clock.advance(1)
      }
      await settle()
      t.equal(connector.connections[0]?.state, 'destroyed')
      if (method === 'rollback') t.equal(run.error, mine as unknown)
      else {
        t.equal(run.error?.code, method === 'commit' ? 'FST_POOL_COMMIT_UNKNOWN' : 'FST_POOL_LEASE_RELEASED',
        `${method}, ${end}: ${run.error?.message}`)
      }
      t.match(pool.stats(), { used: 0, closing: 0, acquired: 1, released: 1 })
      t.equal(released, 0)
      t.same(connector.violations, [])
    }
  }
})

t.test('a commit under way when its lease is released is waited for', async (t) => {
  const { pool, lease, connector, write } = await leased()
  connector.outcomes.commit = 'gate'
  const run = watch(lease.transaction(() => {
    write('a')
    return 1
  }))
  await settle()
  lease.release()
  await settle()
  t.match(pool.stats(), { used: 1, idle: 0 })
  connector.pass('commit')
  await settle()
  t.equal(run.value, 1, 'it was committed, so its caller is told so')
  t.same(connector.rows, ['a'])
  t.match(pool.stats(), { used: 0, idle: 1 })
  t.same(connector.asked, ['begin #1', 'commit #1'])
})

t.test('a commit that fails behind the end of its lease is undone once', async (t) => {
  const { pool, lease, connector } = await leased()
  connector.outcomes.commit = 'gate'
  const run = watch(lease.transaction(() => {}))
  await settle()
  lease.release()
  connector.fail('commit')
  await settle()
  t.equal(run.error?.message, 'commit failed')
  t.same(connector.asked, ['begin #1', 'commit #1', 'rollback #1'])
  t.match(pool.stats(), { idle: 1 })
  t.same(connector.violations, [])
})

t.test('a pool with an open transaction closes by its timeout, and nothing is committed', async (t) => {
  const { pool, lease, connector, clock, write } = await leased({ acquireTimeout: 60_000 })
  const go = gate()
  const run = watch(lease.transaction(async () => {
    write('a')
    await go.opened
  }))
  const waiting = watch(lease.transaction(() => t.fail('it ran')))
  await settle()
  const closing = watch(pool.close({ timeout: 1000 }))
  await clock.advance(1000)
  t.equal(closing.done, true)
  t.equal(waiting.error?.code, 'FST_POOL_LEASE_RELEASED')
  t.equal(connector.connections[0]?.reason, 'closed')
  go.open()
  await settle()
  t.equal(run.error?.code, 'FST_POOL_LEASE_RELEASED')
  t.same(connector.rows, [])
  t.same(clock.timers, { set: 0, ref: 0 })
  t.same(connector.violations, [])
})

t.test('behind the end of its pool a transaction sets no timer', async (t) => {
  const { pool, lease, clock } = await leased()
  const go = gate()
  const inner: Array<{ readonly error?: { readonly code?: string } }> = []
  const run = watch(lease.transaction(async () => {
    await go.opened
    inner.push(watch(lease.transaction(() => {})), watch(lease.transaction(() => {})),
      watch(pool.transaction(() => {})))
    await settle()
    throw new Error('transient')
  }, { retry: 3 }))
  await settle()
  const closing = watch(pool.close({ timeout: 100 }))
  await clock.advance(100)
  t.equal(closing.done, true)
  go.open()
  await settle()
  await settle()
  t.equal(run.error?.message, 'transient')
  t.same(inner.map(({ error }) => error?.code),
    ['FST_POOL_LEASE_RELEASED', 'FST_POOL_LEASE_RELEASED', 'FST_POOL_LEASE_RELEASED'])
  t.same(clock.timers, { set: 0, ref: 0 })
})

t.test('a pool that closes ends a begin, a commit or a rollback that never comes back', async (t) => {
  for (const method of ['begin', 'commit', 'rollback'] as const) {
    const { pool, lease, connector, clock } = await leased({ acquireTimeout: 60_000, resetTimeout: 60_000 })
    connector.outcomes[method] = 'hang'
    const run = watch(lease.transaction(() => { if (method === 'rollback') throw mine }))
    await settle()
    const closing = watch(pool.close({ timeout: 1000 }))
    await clock.advance(1000)
    t.equal(closing.done, true)
    t.equal(run.done, true, `${method}: its caller is told`)
    if (method === 'rollback') t.equal(run.error, mine as unknown)
    if (method === 'commit') t.equal(run.error?.code, 'FST_POOL_COMMIT_UNKNOWN')
    t.equal(connector.connections[0]?.reason, 'closed')
    t.same(clock.timers, { set: 0, ref: 0 })
  }
})

// --- A commit that does not end
// ---------------------------------------------------------------------------------------------------------

const notStored =
  "a transaction on pool 'db' could not be committed within 300 ms (commitTimeout): something that was begun before had not ended " +
  '(a query, a stream, a cursor, a COPY, a transaction within it). Nothing of it is stored; its connection was destroyed.'
const noAnswer =
  "nobody knows whether a transaction on pool 'db' was committed: COMMIT was sent, and no answer came within 300 ms (commitTimeout). " +
  'Look before you do it again.'
const lost =
  "nobody knows whether a transaction on pool 'db' was committed: COMMIT was sent, and its connection ended, or failed, before the answer. " +
  'Look before you do it again.'

t.test('a commit past commitTimeout is given up: not stored where COMMIT was not written, else unknown, and so where the connector does not tell', async (t) => {
  const cases = [
    { inDoubt: false, code: 'FST_POOL_COMMIT_TIMEOUT', message: notStored },
    { inDoubt: true, code: 'FST_POOL_COMMIT_UNKNOWN', message: noAnswer },
    { inDoubt: undefined, code: 'FST_POOL_COMMIT_UNKNOWN', message: noAnswer },
  ]
  for (const { inDoubt, code, message } of cases) {
    const { pool, lease, connector, clock, seen } = await leased()
    connector.outcomes.commit = 'hang'
    connector.inDoubt = inDoubt
    const run = watch(lease.transaction(() => {}, { commitTimeout: 300, retry: 5 }))
    await clock.advance(299)
    t.equal(run.done, false)
    await clock.advance(1)
    t.match(run.error, { code, message, statusCode: 500 })
    t.equal(lease.ended, true)
    t.equal(connector.connections[0]?.reason, 'error')
    t.match(seen('error'), [{ phase: 'commit', error: { code } }])
    t.match(pool.stats(), { used: 0, acquired: 1, released: 1, destroyed: { error: 1 } })
    // The late answer has an owner: nothing comes of it.
    for (const call of connector.calls.slice()) call.pass()
    await settle()
    t.same(connector.asked, ['begin #1', 'commit #1'], 'neither rolled back nor run again')
    t.same(connector.begun, [{}], 'no business of the connector')
    t.same(connector.violations, [])
  }
})

t.test('the deadline of a commit counts from its call: what was begun within, and nobody waited for, is waited for no longer than that', async (t) => {
  const { lease, connector, clock, pool } = await leased()
  let rest: ReturnType<typeof watch> | undefined
  const run = watch(lease.transaction(() => {
    rest = watch(lease.transaction(() => new Promise((resolve) => { pool.on('disconnect', resolve) })))
  }, { commitTimeout: 300 }))
  await clock.advance(299)
  t.equal(run.done, false)
  await clock.advance(1)
  t.match(run.error, { code: 'FST_POOL_COMMIT_TIMEOUT', message: notStored })
  await settle()
  t.equal(rest?.error?.code, 'FST_POOL_LEASE_RELEASED')
  t.same(connector.asked, ['begin #1', 'savepoint fastify_pool_1 #1'])
  t.match(pool.stats(), { used: 0, destroyed: { error: 1 } })
  t.equal(clock.timers.ref, 0)

  const slow = await leased()
  const go = gate()
  slow.connector.outcomes.commit = 'hang'
  slow.connector.next.commit = ['ok']
  slow.connector.inDoubt = false
  const late =
    watch(slow.lease.transaction(() => { watch(slow.lease.transaction(() => go.opened)) }, { commitTimeout: 300 }))
  await slow.clock.advance(200)
  go.open()
  await slow.clock.advance(99)
  t.same([late.done, slow.connector.asked.at(-1)], [false, 'commit #1'], 'COMMIT has what is left')
  await slow.clock.advance(1)
  t.equal(late.error?.code, 'FST_POOL_COMMIT_TIMEOUT')
})

t.test('a rollback with a commitTimeout waits no longer than that for what was begun within', async (t) => {
  const { lease, connector, clock, pool, seen } = await leased()
  const run = watch(lease.transaction(() => {
    watch(lease.transaction(() => new Promise(() => {})))
    throw mine
  }, { commitTimeout: 300 }))
  await clock.advance(299)
  t.equal(run.done, false)
  await clock.advance(1)
  t.equal(run.error, mine as unknown)
  t.equal(connector.connections[0]?.reason, 'error')
  t.match(seen('error'), [{
    phase: 'rollback',
    error: {
      message: 'a transaction was not rolled back within 300 ms (commitTimeout): one within it had not ended',
    }
  }])
  t.match(pool.stats(), { used: 0, acquired: 1, released: 1 })
})

t.test('a savepoint has the commitTimeout of what it is in, and is never in doubt: nothing is stored before the whole is', async (t) => {
  const { lease, connector, clock } = await leased()
  connector.outcomes.commit = 'hang'
  const inner: Array<ReturnType<typeof watch>> = []
  const run = watch(lease.transaction(async () => {
    inner.push(watch(lease.transaction(() => {})))
    await new Promise((resolve) => { setImmediate(resolve) })
  }, { commitTimeout: 300 }))
  await clock.advance(300)
  t.equal(inner[0]?.error?.code, 'FST_POOL_COMMIT_TIMEOUT')
  t.equal(run.error?.code, 'FST_POOL_LEASE_RELEASED')
  t.equal(connector.connections[0]?.reason, 'error')

  const other = await leased()
  other.connector.outcomes.commit = 'hang'
  const nested = watch(other.lease.transaction(() => other.lease.transaction(() => {})))
  await settle()
  other.lease.destroy()
  await settle()
  t.match(nested.error,
    { code: 'FST_POOL_LEASE_RELEASED', message: "a transaction on pool 'db' was not committed: its lease has ended" })
})

t.test('where several are past the same deadline, their lease ends once', async (t) => {
  const { pool, lease, clock, connector, seen } = await leased()
  const inner: Array<ReturnType<typeof watch>> = []
  const run = watch(lease.transaction(() => {
    inner.push(watch(lease.transaction(() => { watch(lease.transaction(() => new Promise(() => {}))) })))
  }, { commitTimeout: 300 }))
  await clock.advance(300)
  t.same([run, ...inner].map(({ error }) => error?.code), ['FST_POOL_COMMIT_TIMEOUT', 'FST_POOL_COMMIT_TIMEOUT'])
  t.equal(seen('disconnect').length, 1)
  t.match(pool.stats(), { released: 1, used: 0, destroyed: { error: 1 } })
  t.same(connector.violations, [])
})

t.test('without a commitTimeout a commit has no deadline: 0, and jobs that do not name it', async (t) => {
  for (const options of [undefined, {}, { commitTimeout: 0 }, { commitTimeout: undefined }]) {
    const { lease, connector, clock } = await leased({ commitTimeout: 100 })
    connector.outcomes.commit = 'gate'
    const run = watch(lease.transaction(() => 1, options))
    await clock.advance(1_000_000)
    t.equal(run.done, false)
    connector.pass('commit')
    await settle()
    t.equal(run.value, 1)
  }
  const { pool, connector, clock } = fakePool({ commitTimeout: 100 })
  connector.outcomes.commit = 'hang'
  const job = watch(pool.transaction(() => {}))
  const named = watch(pool.transaction(() => {}, { commitTimeout: 200 }))
  await clock.advance(10_000)
  t.same([job.done, named.error?.code], [false, 'FST_POOL_COMMIT_UNKNOWN'])
})

t.test("for a request, held or not, it is the pool's, unless the call says otherwise", async (t) => {
  const ways: Array<(lease: Lease<FakeConnection>, options?: RunOptions) => Promise<unknown>> = [
    (lease, options) => hold(lease, options ?? {}).then((held) => held.commit()),
    (lease, options) => transact(lease, () => {}, options),
  ]
  for (const way of ways) {
    for (const [options, ms] of [
      [undefined, 100],
      [{ commitTimeout: 250 }, 250],
      [{ commitTimeout: undefined }, 100],
      [{ commitTimeout: 0 }, Infinity],
    ] as const) {
      const { lease, connector, clock } = await leased({ commitTimeout: 100 })
      connector.outcomes.commit = 'hang'
      connector.inDoubt = false
      const run = watch(way(lease, options))
      await clock.advance(Math.min(ms, 10_000) - 1)
      t.equal(run.done, false)
      await clock.advance(1)
      t.equal(run.error?.code, ms === Infinity ? undefined : 'FST_POOL_COMMIT_TIMEOUT')
      lease.destroy()
    }
  }
  const { lease, connector, clock } = await leased()
  connector.outcomes.commit = 'hang'
  connector.inDoubt = false
  const held = await hold(lease, {})
  t.equal(held.commitTimeout, 5000)
  const run = watch(held.commit(4000))
  await clock.advance(1000)
  t.equal(run.error?.code, 'FST_POOL_COMMIT_TIMEOUT', 'some of it had gone')
})

t.test('a commit that settles in time sets no timer of its own', async (t) => {
  const { lease, clock } = await leased({ commitTimeout: 5000 })
  const before = clock.timers
  await transact(lease, () => {})
  t.same(clock.timers, before)
})

t.test('where the connection ends while a commit is in doubt, nobody knows; where COMMIT was not written, it is not stored', async (t) => {
  for (const inDoubt of [false, true, undefined]) {
    for (const how of ['destroy', 'abandon', 'release', 'close'] as const) {
      const { pool, lease, connector, clock } = await leased({ resetTimeout: 200 })
      connector.outcomes.commit = 'hang'
      connector.inDoubt = inDoubt
      // As a driver may: behind its end it says something else.
      const { destroy } = connector
      connector.destroy = (connection, reason) => {
        connector.inDoubt = inDoubt === false
        return destroy.call(connector, connection, reason)
      }
      const run = watch(lease.transaction(() => {}, { retry: 3 }))
      await settle()
      if (how === 'abandon') abandon(lease)
      else if (how === 'close') watch(pool.close({ timeout: 200 }))
      else lease[how]()
      await clock.advance(200)
      t.match(run.error, inDoubt === false
        ? {
            code: 'FST_POOL_LEASE_RELEASED', message: "a transaction on pool 'db' was not committed: its lease has ended",
          }
        : { code: 'FST_POOL_COMMIT_UNKNOWN', message: lost, statusCode: 500 }, `${how}, ${inDoubt}`)
      t.equal(connector.connections[0]?.state, 'destroyed')
      t.same(connector.asked, ['begin #1', 'commit #1'])
    }
  }
})

t.test('a commit that rejects in doubt is not known to have failed: its connection is destroyed, the cause is told without secrets', async (t) => {
  for (const inDoubt of [true, undefined]) {
    const { pool, lease, connector, seen } = await leased({ url: 'fake://me:hunter22@host' })
    connector.outcomes.commit = 'gate'
    connector.inDoubt = inDoubt
    const run = watch(lease.transaction(() => {}, { retry: 3 }))
    await settle()
    if (inDoubt === undefined) connector.connections[0]!.broken = true
    connector.fail('commit', Object.assign(new Error('transient, says hunter22'), { code: 'ECONNRESET' }))
    await settle()
    t.match(run.error,
      { code: 'FST_POOL_COMMIT_UNKNOWN', message: lost, cause: { message: 'transient, says ***', code: 'ECONNRESET' } })
    t.match(seen('error'), [{ phase: 'commit', error: { code: 'FST_POOL_COMMIT_UNKNOWN' } }])
    t.same(connector.asked, ['begin #1', 'commit #1'], 'neither rolled back nor run again')
    t.match(pool.stats(), { used: 0, idle: 0, acquired: 1, released: 1, destroyed: { error: 1 } })
  }
})

t.test('a commit that is refused is what its error says, and may be run again', async (t) => {
  for (const [inDoubt, broken] of [[false, false], [undefined, false], [false, true]] as const) {
    const { lease, connector, clock } = await leased()
    connector.outcomes.commit = 'gate'
    connector.inDoubt = inDoubt
    const run = watch(lease.transaction(() => {}, { retry: 1 }))
    await settle()
    connector.connections[0]!.broken = broken
    connector.fail('commit', new Error('transient'))
    connector.outcomes.commit = 'ok'
    await clock.advance(100)
    t.equal(run.error, undefined)
    t.same(connector.asked, ['begin #1', 'commit #1', 'rollback #1', 'begin #1', 'commit #1'])
  }
})

t.test('use() does not run again what may have been committed, whatever the connector calls transient', async (t) => {
  const { pool, connector } = fakePool()
  Object.assign(connector, { isTransient: () => true })
  connector.outcomes.commit = 'error'
  connector.inDoubt = true
  let ran = 0
  const twice = (wrapped: boolean) => failure(pool.use(async (_, lease) => {
    ran++
    // As a query builder does.
    await lease.transaction(() => {}).catch((error: unknown) => {
      throw wrapped ? new Error('it failed', { cause: error }) : error
    })
  }, { retry: 3 }))
  t.equal((await twice(false)).code, 'FST_POOL_COMMIT_UNKNOWN')
  t.equal((await twice(true)).message, 'it failed')
  t.equal(ran, 2)
  connector.inDoubt = false
  const again = watch(twice(false))
  await settle()
  t.equal(again.done, false, 'where the server refused it, it is')
})

// --- Holding ---------------------------------------------------------------------------------------------------------

t.test('while a transaction is held, the lease is within it', async (t) => {
  const { pool, lease, connector, connection } = await leased()
  connector.binds = true
  const held = await hold(lease, { isolation: 'serializable' })
  t.same(connector.begun, [{ isolation: 'serializable' }])
  const bound = lease.connection
  t.not(bound, connection)
  t.equal(lease.connection, bound, 'each time the same one')
  connector.write(bound, '1')
  t.equal(await lease.transaction((inner) => {
    t.not(inner, connection)
    connector.write(inner, '2')
    return 5
  }), 5)
  t.equal(await failure(lease.transaction((inner) => {
    connector.write(inner, '3')
    throw mine
  })), mine)
  t.same(connector.rows, [])
  await held.commit()
  t.same(connector.rows, ['1', '2'])
  t.equal(lease.connection, connection)
  t.equal(await lease.transaction(() => 6), 6, 'from then on it has transactions of its own')
  t.same(connector.asked, [
    'begin #1', 'savepoint fastify_pool_1 #1', 'commit fastify_pool_1 #1', 'savepoint fastify_pool_1 #1',
    'rollback fastify_pool_1 #1', 'commit #1',
    'begin #1', 'commit #1',
  ])
  lease.release()
  t.match(pool.stats(), { idle: 1 })
  t.same(connector.violations, [])
})

t.test('a held transaction that is rolled back leaves nothing', async (t) => {
  const { lease, connector, write } = await leased()
  const held = await hold(lease, {})
  write('a')
  await held.rollback()
  t.same(connector.rows, [])
  t.equal(await lease.transaction(() => 1), 1)
  t.same(connector.asked, ['begin #1', 'rollback #1', 'begin #1', 'commit #1'])
})

t.test('a held transaction ends once: what comes later does nothing to the next one', async (t) => {
  const { lease, connector, write } = await leased()
  const held = await hold(lease, {})
  write('a')
  connector.outcomes.commit = 'gate'
  const commit = watch(held.commit())
  const rollback = watch(held.rollback())
  await settle()
  t.same(connector.asked, ['begin #1', 'commit #1'], 'one after the other')
  connector.outcomes.commit = 'ok'
  connector.pass('commit')
  await settle()
  t.same([commit, rollback], [{ done: true, value: undefined }, { done: true, value: undefined }])
  await lease.transaction(async () => {
    write('b')
    await held.rollback()
  })
  t.same(connector.rows, ['a', 'b'])
  t.same(connector.asked, ['begin #1', 'commit #1', 'begin #1', 'commit #1'])
  const undone = await hold(lease, {})
  await undone.rollback()
  t.equal((await failure(undone.commit())).code, 'FST_POOL_TRANSACTION_ENDED',
    'it never says that it committed what it did not')
})

t.test('a held transaction whose commit fails is rolled back, and may be told to roll back', async (t) => {
  const { lease, connector } = await leased()
  connector.outcomes.commit = 'error'
  const held = await hold(lease, {})
  t.equal((await failure(held.commit())).message, 'commit failed')
  t.same(connector.asked, ['begin #1', 'commit #1', 'rollback #1'])
  await held.rollback()
  t.same(connector.asked, ['begin #1', 'commit #1', 'rollback #1'])
  connector.outcomes.commit = 'ok'
  t.equal(await lease.transaction(() => 1), 1)
})

t.test('what was called before a transaction was held, or holds another one, comes behind its end', async (t) => {
  const { lease, connector } = await leased()
  connector.next.begin = ['gate']
  const first = watch(hold(lease, {}))
  const second = watch(hold(lease, {}))
  const third = watch(lease.transaction(() => 3))
  await settle()
  connector.pass('begin')
  await settle()
  t.same([first.done, second.done, third.done], [true, false, false])
  await first.value!.commit()
  await settle()
  t.same([second.done, third.done], [true, false])
  await second.value!.rollback()
  await settle()
  t.equal(third.value, 3)
  t.same(connector.asked, ['begin #1', 'commit #1', 'begin #1', 'rollback #1', 'begin #1', 'commit #1'])
  t.same(connector.violations, [])
})

t.test('the lease can be used behind a hold that failed to begin', async (t) => {
  const { lease, connector, connection } = await leased()
  connector.next.begin = ['error']
  t.equal((await failure(hold(lease, {}))).message, 'begin failed')
  t.equal(lease.connection, connection)
  t.equal(await lease.transaction(() => 1), 1)
  lease.release()
  t.equal((await failure(hold(lease, {}))).code, 'FST_POOL_LEASE_RELEASED')
})

t.test('only leases of a pool can hold one', async (t) => {
  t.match(await failure(hold({ pool: 'db' } as Lease<FakeConnection>, {})), {
    code: 'FST_POOL_NOT_SUPPORTED', message: "the lease on pool 'db' is not one of ours: it has no transactions",
  })
})

t.test('a lease released while it holds one is rolled back before the next borrower, whatever the mode', async (t) => {
  for (const reset of ['session', 'transaction', 'none'] as const) {
    let released = 0
    const { pool, lease, connector, write } = await leased({ reset, onRelease: () => { released++ } })
    const held = await hold(lease, {})
    write('a')
    connector.outcomes.rollback = 'gate'
    lease.release()
    const next = watch(pool.acquire())
    await settle()
    t.equal(next.done, false)
    connector.pass('rollback')
    await settle()
    t.equal(next.done, true)
    t.equal(released, 1)
    t.equal(connector.depth(next.value!.connection), 0)
    t.equal((await failure(held.commit())).code, 'FST_POOL_LEASE_RELEASED')
    const late = await hold(next.value!, {})
    await held.rollback()
    await late.commit()
    t.same(connector.rows, [])
    t.same(connector.asked, ['begin #1', 'rollback #1', 'begin #1', 'commit #1'])
    t.same(connector.violations, [])
  }
})

t.test('a hold under way when its lease is released does not come about', async (t) => {
  const { pool, lease, connector } = await leased()
  connector.outcomes.begin = 'gate'
  const held = watch(hold(lease, {}))
  await settle()
  lease.release()
  connector.pass('begin')
  await settle()
  t.equal(held.error?.code, 'FST_POOL_LEASE_RELEASED')
  t.same(connector.asked, ['begin #1', 'rollback #1'])
  t.match(pool.stats(), { idle: 1 })
})

t.test('onRelease that fails behind a rollback destroys the connection', async (t) => {
  const { pool, lease, connector, seen } = await leased({ onRelease: () => { throw new Error('hook') } })
  await failure(lease.transaction(() => { lease.release() }))
  await settle()
  t.equal(connector.connections[0]?.reason, 'error')
  t.match(seen('error'), [{ phase: 'onRelease', error: { message: 'hook' } }])
  t.match(pool.stats(), { used: 0 })
})

// --- Of a pool -------------------------------------------------------------------------------------------------------

t.test('a pool\'s transaction gives its connection back, whatever happens', async (t) => {
  const { pool, connector, seen } = fakePool({ max: 1 })
  const row = (what: string) => (connection: FakeConnection) => {
    connector.write(connection, what)
    return what
  }
  t.equal(await pool.transaction(row('a'), { holder: 'me', isolation: 'serializable' }), 'a')
  t.same(seen('acquire').map(({ holder }) => holder), ['me'])
  t.same(connector.begun, [{ isolation: 'serializable' }])
  t.match(pool.stats(), { idle: 1, used: 0 })
  t.equal(await failure(pool.transaction((connection) => {
    row('b')(connection)
    throw mine
  })), mine)
  t.match(pool.stats(), { idle: 1, used: 0 })
  connector.next.begin = ['error']
  t.equal((await failure(pool.transaction(row('c')))).message, 'begin failed')
  t.match(pool.stats(), { idle: 1, used: 0 })
  t.same(connector.rows, ['a'])
})

t.test('a pool\'s transaction waits in line for a connection as acquire does', async (t) => {
  const { pool, lease, clock } = await leased()
  const timed = watch(pool.transaction(() => t.fail('it ran'), { timeout: 50 }))
  const left = new AbortController()
  const aborted = watch(pool.transaction(() => t.fail('it ran'), { signal: left.signal }))
  left.abort()
  await clock.advance(50)
  t.equal(timed.error?.code, 'FST_POOL_ACQUIRE_TIMEOUT')
  t.equal(aborted.error?.code, 'FST_POOL_ABORTED')
  lease.release()
})

t.test('within a transaction of the same pool a pool\'s is a savepoint on the same connection; of another pool it is its own', async (t) => {
  const one = fakePool({ name: 'one', max: 1, acquireTimeout: 300 })
  const two = fakePool({ name: 'two', max: 1, acquireTimeout: 300 })
  const run = watch(one.pool.transaction(async (outer) => {
    await one.pool.transaction((inner) => { t.equal(inner, outer) })
    await two.pool.transaction(async (other) => {
      t.not(other, outer)
      await one.pool.transaction((inner) => { t.equal(inner, outer) })
      await two.pool.transaction((inner) => { t.equal(inner, other) })
    })
    return 'done'
  }))
  await one.clock.advance(500)
  await two.clock.advance(500)
  await settle()
  t.same([run.value, run.error], ['done', undefined])
  const [savepoint, release] = ['savepoint fastify_pool_1 #1', 'commit fastify_pool_1 #1']
  t.same(one.connector.asked, ['begin #1', savepoint, release, savepoint, release, 'commit #1'])
  t.same(two.connector.asked, ['begin #1', savepoint, release, 'commit #1'])
})

t.test('a pool\'s transaction called behind the end of the one around it is its own', async (t) => {
  const { pool, connector } = fakePool({ max: 2 })
  const go = gate()
  let late: Promise<number> | undefined
  await pool.transaction(() => { late = go.opened.then(() => pool.transaction(() => 4)) })
  go.open()
  t.equal(await late, 4)
  t.same(connector.asked, ['begin #1', 'commit #1', 'begin #1', 'commit #1'])
})

t.test('fn and the connector see the async context of whoever asked, and what the pool does by itself nobody\'s', async (t) => {
  const store = new AsyncLocalStorage<string>()
  const { lease, connector, clock } = await leased()
  const seen: Record<string, string[]> = {}
  connector.onAsked = (what) => {
    (seen[String(store.getStore())] ??= []).push(what.replace(/ .*/, ''))
    // A connector's own is seen by nobody.
    store.enterWith('of a connector')
  }
  const fn = async (name: string) => {
    t.equal(store.getStore(), name)
    await settle()
    t.equal(store.getStore(), name)
  }
  await Promise.all(['a', 'b'].map((name) => store.run(name, async () => {
    await lease.transaction(async () => {
      await fn(name)
      await lease.transaction(() => fn(name))
      await failure(lease.transaction(() => { throw mine }))
    })
    t.equal(store.getStore(), name)
  })))
  let ran = 0
  const again = watch(store.run('c', () => lease.transaction(async () => {
    await fn('c')
    if (++ran < 2) throw new Error('transient')
  }, { retry: 1 })))
  for (let i = 0; i < 3; i++) await clock.advance(100)
  t.equal(again.done, true)
  await store.run('d', async () => {
    const held = await hold(lease, {})
    await held.rollback()
    await failure(lease.transaction(() => { lease.release() }))
  })
  await settle()
  const both = ['begin', 'savepoint', 'commit', 'savepoint', 'rollback', 'commit']
  t.same(seen, {
    a: both,
    b: both,
    c: ['begin', 'rollback', 'begin', 'commit'],
    d: ['begin', 'rollback', 'begin'],
    undefined: ['rollback'],
  })
  t.same(connector.violations, [])
})
