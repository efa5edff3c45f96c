// `npm run bench:resets`: what a lease costs in each reset mode, beside the driver's own pool used by hand. Prints the
// table of docs/figures.md.
//
// CPU time of this process for one lease with one `select 1`, ten connections kept busy, in rounds of all ways one
// after the other; the median, and the quartiles of the difference to the driver's own pool in the same round.
import mysql2 from 'mysql2/promise'
import pg from 'pg'
import { Pool, mysql, postgresql } from '../../index.js'
import { startMariadb, startPostgres } from '../support/services.js'

const rounds = Number(process.env.ROUNDS ?? 15)
const leases = Number(process.env.LEASES ?? 5000)
const max = 10

interface Way { readonly name: string, lease (): Promise<unknown>, end (): Promise<unknown> }

const modes = ['none', 'transaction', 'session'] as const

async function postgresWays (url: string): Promise<Way[]> {
  const own = new pg.Pool({ connectionString: url, max })
  const byHand: Way = {
    name: 'pg.Pool, connect() and release()',
    async lease () {
      const client = await own.connect()
      try {
        await client.query('select 1')
      } finally {
        client.release()
      }
    },
    end: () => own.end(),
  }
  const ours = await Promise.all([...modes, 'joined' as const].map(async (reset): Promise<Way> => {
    const pool = new Pool(await postgresql({ url, reset }), { max, reset })
    return { name: reset, lease: () => pool.use((client) => client.query('select 1')), end: () => pool.close() }
  }))
  return [byHand, ...ours]
}

async function mysqlWays (url: string): Promise<Way[]> {
  const own = mysql2.createPool({ uri: url, connectionLimit: max })
  const byHand: Way = {
    name: "mysql2's pool, getConnection() and release()",
    async lease () {
      const connection = await own.getConnection()
      try {
        await connection.query('select 1')
      } finally {
        connection.release()
      }
    },
    end: () => own.end(),
  }
  const ours = await Promise.all(modes.map(async (reset): Promise<Way> => {
    const pool = new Pool(await mysql({ url, reset }), { max, reset })
    return { name: reset, lease: () => pool.use((connection) => connection.query('select 1')), end: () => pool.close() }
  }))
  return [byHand, ...ours]
}

/** In microseconds of CPU, for one lease. */
async function cost ({ lease }: Way): Promise<number> {
  const before = process.cpuUsage()
  let left = leases
  await Promise.all(Array.from({ length: max }, async () => { while (left-- > 0) await lease() }))
  const { user, system } = process.cpuUsage(before)
  return (user + system) / leases
}

function quantile (values: readonly number[], q: number): number {
  return [...values].sort((a, b) => a - b)[Math.round((values.length - 1) * q)]!
}

async function measure (title: string, ways: readonly Way[]): Promise<void> {
  for (const way of ways) await cost(way)
  const costs = ways.map((): number[] => [])
  for (let round = 0; round < rounds; round++) {
    // Each round begins with another one.
    for (let i = 0; i < ways.length; i++) {
      const at = (round + i) % ways.length
      costs[at]!.push(await cost(ways[at]!))
    }
  }
  console.log(`\n| ${title} | CPU of a lease, us | above the driver's own, us (quartiles) |\n| --- | ---: | ---: |`)
  for (const [at, { name }] of ways.entries()) {
    const above = costs[at]!.map((us, round) => us - costs[0]![round]!)
    const difference = at === 0
      ? ''
      : `${quantile(above, 0.5).toFixed(1)} (${quantile(above, 0.25).toFixed(1)} to ${quantile(above, 0.75).toFixed(1)})`
    console.log(`| ${at === 0 ? name : `\`'${name}'\``} | ${quantile(costs[at]!, 0.5).toFixed(1)} | ${difference} |`)
  }
  for (const { end } of ways) await end()
}

const teardowns: Array<() => unknown> = []
const t = { teardown: (fn: () => unknown) => { teardowns.unshift(fn) } }
try {
  console.log(`Node ${process.version}, ${rounds} rounds of ${leases} leases`)
  await measure('PostgreSQL', await postgresWays((await startPostgres(t)).url))
  await measure('MariaDB', await mysqlWays((await startMariadb(t)).url))
} finally {
  for (const fn of teardowns) await fn()
}
