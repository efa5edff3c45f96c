// The adapters of query builders over each driver of SQLite: the libraries know better-sqlite3's statements, and Node's
// own are others.
import { sql as drizzleSql } from 'drizzle-orm'
import type { SqliteRemoteDatabase } from 'drizzle-orm/sqlite-proxy'
import type { Knex } from 'knex'
import { sql, type Kysely } from 'kysely'
import { join } from 'node:path'
import t from 'tap'
import { Pool, sqlite } from '../../index.js'
import type { PoolFace } from '../../index.js'
import { drizzle } from '../../lib/wrap/drizzle.js'
import { knex } from '../../lib/wrap/knex.js'
import { kysely } from '../../lib/wrap/kysely.js'
import { eachDriver } from '../backends/sqlite-drivers.js'

interface Numbers { numbers: { n: number | null, text: string | null } }

const noBack = async (transaction: Promise<unknown>) => {
  await transaction.catch(() => { /* It was to be rolled back. */ })
}

await eachDriver(t, import.meta.url, async (t, Driver) => {
  const open = async <T>(name: string, wrap: unknown): Promise<PoolFace<T>> => {
    const pool =
      new Pool(await sqlite({ url: join(t.testdir({}), `${name}.db`), driver: Driver }),
        { max: 1, wrap: wrap as never })
    t.teardown(() => pool.close())
    await pool.use((_, lease) => {
      (lease.raw as { exec (text: string): void }).exec('create table numbers (n int, text text)')
    })
    return pool as unknown as PoolFace<T>
  }
  const plain = (rows: readonly unknown[]) => rows.map((row) => ({ ...row as object }))
  const both = [{ n: 1, text: 'one' }, { n: null, text: null }]

  await t.test('Kysely', async (t) => {
    const pool = await open<Kysely<Numbers>>('kysely', kysely())
    await pool.use(async (db) => {
      const inserted = await db.insertInto('numbers').values(both).returningAll().execute()
      t.same(plain(inserted), both)
      const { numUpdatedRows } = await db.updateTable('numbers').set({ text: 'two' }).where('n', '=', 1)
        .executeTakeFirstOrThrow()
      t.equal(numUpdatedRows, 1n)
      t.same(plain(await db.selectFrom('numbers').selectAll().where('n', 'in', [1, 2]).execute()),
        [{ n: 1, text: 'two' }])
      t.same(await db.selectFrom('numbers').select('n').where('n', '=', 2).execute(), [])
      const streamed: unknown[] = []
      for await (const row of db.selectFrom('numbers').select('n').orderBy('n').stream()) streamed.push(row)
      t.same(plain(streamed), [{ n: null }, { n: 1 }])
      await noBack(db.transaction().execute(async (trx) => {
        await sql`delete from numbers`.execute(trx)
        throw new Error('back')
      }))
      t.equal((await db.selectFrom('numbers').selectAll().execute()).length, 2)
      await db.transaction().execute((trx) => trx.deleteFrom('numbers').execute())
      t.same(await db.selectFrom('numbers').selectAll().execute(), [])
    })
  })

  await t.test('Drizzle', async (t) => {
    const pool = await open<SqliteRemoteDatabase>('drizzle', drizzle())
    await pool.use(async (db) => {
      t.same(await db.all(drizzleSql`insert into numbers values (${1}, ${'one'}), (null, null) returning n`),
        [[1], [null]])
      t.same(await db.get(drizzleSql`select n, text from numbers where n = ${1}`), [1, 'one'])
      t.same(await db.all(drizzleSql`select a.n, b.n from numbers a join numbers b on a.n = b.n`), [[1, 1]],
        'columns of the same name too')
      await noBack(db.transaction(async (tx) => {
        await tx.run(drizzleSql`delete from numbers`)
        throw new Error('back')
      }))
      t.equal((await db.all(drizzleSql`select * from numbers`)).length, 2)
      await db.transaction((tx) => tx.run(drizzleSql`delete from numbers`))
      t.same(await db.all(drizzleSql`select * from numbers`), [])
    })
  })

  await t.test('Knex', async (t) => {
    const pool = await open<Knex>('knex', knex())
    await pool.use(async (db) => {
      t.same(plain(await db('numbers').insert(both).returning(['n', 'text'])), both)
      t.equal(await db('numbers').where({ n: 1 }).update({ text: 'two' }), 1)
      t.same({ ...await db('numbers').where({ n: 1 }).first() as object }, { n: 1, text: 'two' })
      await noBack(db.transaction(async (trx) => {
        await trx('numbers').delete()
        throw new Error('back')
      }))
      t.equal((await db('numbers').select()).length, 2)
      await db.transaction((trx) => trx('numbers').delete())
      t.same(await db('numbers').select(), [])
    })
  })
})
