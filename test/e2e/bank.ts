import type { AddressInfo } from 'node:net'
import Fastify from 'fastify'
import type { Test } from 'tap'
import fastifyPool, { type PoolOptions } from '../../index.js'
import { some } from '../support/full.js'
import { until } from '../support/until.js'
import { keepAliveAgent } from './client.js'
import { type Plan, Storm, seeded, type When } from './storm.js'

export const accounts = 50
export const opening = 1000
const requests = some(2000, 5000)
const width = 40
const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31))

export interface Transfer { readonly id: number, readonly from: number, readonly to: number, readonly amount: number }

/** A bank in one kind of database. Its accounts 0 to 49 begin with `opening` each. */
export interface Bank<C> {
  /** Adds to (or takes from) an account. */
  add (connection: C, account: number, amount: number): Promise<void>
  record (connection: C, transfer: Transfer): Promise<void>
  /** What the database holds, read outside of the app. */
  read (): Promise<{ balances: readonly number[], transfers: readonly Transfer[] }>
}

/** What becomes of a transfer, besides what its client, its database and its competitors do. */
type Fate = 'done' | 'throws' | 'refused' | 'invalid'

/**
 * Thousands of transfers, each in its route's transaction. Some handlers throw or refuse, some clients go away,
 * transactions deadlock, and after half of them the database is restarted. Whatever happens, no money is made or lost,
 * and what a client was told is true.
 */
export async function runBank<C> (
  t: Test, { pool, bank, restart }: { pool: PoolOptions, bank: Bank<C>, restart: () => Promise<void> }
): Promise<void> {
  t.comment(`seed ${seed}: set SEED to run it again`)
  const random = seeded(seed)
  const pick = <T>(from: readonly T[]): T => from[Math.floor(random() * from.length)]!
  const transfers: Array<Transfer & { fate: Fate, leavesAt: number }> = []
  const plans = Array.from({ length: requests }, (_, id): Plan => {
    const from = Math.floor(random() * accounts)
    const when =
      pick<When>(['never', 'never', 'never', 'never', 'never', 'never', 'never', 'before', 'during', 'answer'])
    const fate = pick<Fate>(['done', 'done', 'done', 'done', 'done', 'done', 'done', 'throws', 'refused', 'invalid'])
    const transfer =
      {
        id,
        from,
        to: (from + 1 + Math.floor(random() * (accounts - 1))) % accounts,
        amount: 1 +
        Math.floor(random() * 100)
      }
    transfers.push({ ...transfer, fate, leavesAt: when === 'during' ? 1 + Math.floor(random() * 3) : 0 })
    return {
      id,
      method: 'POST',
      path: '/transfers',
      body: JSON.stringify(fate === 'invalid'
        ? { ...transfer, amount: 0 }
        : transfer),
      when
    }
  })

  const app = Fastify()
  await app.register(fastifyPool, { max: 10, acquireTimeout: 30_000, ...pool } as PoolOptions)
  const agent = keepAliveAgent(t, width)
  const storm = new Storm(() => (app.server.address() as AddressInfo).port, agent)
  let handled = 0
  let restarted: Promise<void> | undefined
  const properties =
    { id: { type: 'integer' }, from: { type: 'integer' }, to: { type: 'integer' }, amount: { type: 'integer', minimum: 1 } }
  app.addContentTypeParser('text/plain', { parseAs: 'string' },
    (_request, body, done) => { done(null, JSON.parse(body as string)) })
  app.post<{ Body: Transfer }>('/transfers', {
    schema: { body: { type: 'object', required: Object.keys(properties), properties } },
    config: { pools: { db: { transaction: true } } },
  }, async (request, reply) => {
    const transfer = request.body
    const { fate, leavesAt } = transfers[transfer.id]!
    if (++handled === requests / 2) restarted = restart()
    const connection = request.db as C
    const step = (at: number) => { if (at === leavesAt) storm.goAway(transfer.id) }
    step(1)
    await bank.add(connection, transfer.from, -transfer.amount)
    step(2)
    if (fate === 'throws') throw new Error('a random failure')
    await bank.add(connection, transfer.to, transfer.amount)
    await bank.record(connection, transfer)
    step(3)
    if (fate === 'refused') reply.code(409)
    return { done: transfer.id }
  })
  await app.listen({ host: '127.0.0.1', port: 0 })

  const began = performance.now()
  await storm.run(plans, width)
  t.ok(restarted, 'the database was restarted in the middle')
  await restarted
  const stats = () => app.pools.get('db').stats()
  await until(() => stats().used + stats().pending === 0, { timeout: 60_000, what: 'every connection is back' })
  t.equal(stats().acquired, stats().released)
  await app.close()

  const { balances, transfers: recorded } = await bank.read()
  const sum = balances.reduce((total, balance) => total + balance, 0)
  t.equal(balances.length, accounts)
  t.equal(sum, accounts * opening, 'the sum of all accounts never changes')
  const expected = Array.from({ length: accounts }, () => opening)
  for (const { from, to, amount } of recorded) {
    expected[from]! -= amount
    expected[to]! += amount
  }
  t.strictSame(balances, expected, 'every transfer on record was made as a whole, and no other')
  const ids = new Set(recorded.map(({ id }) => id))
  t.equal(ids.size, recorded.length, 'none was made twice')
  const told = storm.outcomes.filter(({ body, status }) => body !== undefined && status === 200)
  t.strictSame(told.filter(({ id }) => !ids.has(id)), [], 'what a client was told is done is done')
  t.strictSame(transfers.filter(({ id, fate }) => fate !== 'done' && ids.has(id)), [],
    'what the handler refused, or threw for, is undone')
  t.ok(told.length > requests / 4, `${told.length} transfers were confirmed`)
  const statuses: Record<string, number> = {}
  for (const { status, error } of storm.outcomes) {
    statuses[status ?? error ?? '?'] =
    (statuses[status ?? error ?? '?'] ?? 0) + 1
  }
  t.comment(`${Math.round(performance.now() - began)} ms; ${JSON.stringify(statuses)}; ${recorded.length} on record`)
}
