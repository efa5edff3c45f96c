// Another process that has the same database, on the bare driver: for tests of two processes, and to count at the
// server. Told what it is by its arguments.
import { createRequire } from 'node:module'
import { join } from 'node:path'

const [kind, where] = JSON.parse(process.argv[2])

/** What each database calls them: adding one row, and reading all. */
const kinds = {
  async postgresql ({ url, table }) {
    const { default: pg } = await import('pg')
    const client = new pg.Client(url)
    await client.connect()
    return {
      add: (row) => client.query(`INSERT INTO ${table} VALUES ($1)`, [row]),
      all: async () => (await client.query({ text: `SELECT * FROM ${table}`, rowMode: 'array' })).rows.flat(),
    }
  },
  async mysql ({ url, table }) {
    const { default: mysql } = await import('mysql2/promise')
    const connection = await mysql.createConnection(url)
    return {
      add: (row) => connection.query(`INSERT INTO ${table} VALUES (?)`, [row]),
      all: async () => (await connection.query({ sql: `SELECT * FROM ${table}`, rowsAsArray: true }))[0].flat(),
    }
  },
  async redis ({ url, key }) {
    const { Redis } = await import('ioredis')
    const redis = new Redis(url)
    return { add: (row) => redis.rpush(key, row), all: () => redis.lrange(key, 0, -1) }
  },
  async mongodb ({ url, database, collection }) {
    const { MongoClient } = await import('mongodb')
    const rows = (await new MongoClient(url).connect()).db(database).collection(collection)
    return {
      add: (row) => rows.insertOne({ row }), all: async () => (await rows.find().toArray()).map(({ row }) => row),
    }
  },
  async sqlite ({ driver, path, from, table }) {
    const Database = driver === 'node:sqlite'
      ? process.getBuiltinModule('node:sqlite').DatabaseSync
      : createRequire(driver === 'libsql' ? import.meta.url : join(from, 'index.js'))(driver)
    const db = new Database(path, { timeout: 0 })
    return {
      // By `exec`: bare libsql loses what is written by a statement behind a SQLITE_BUSY.
      add: (row) => db.exec(`INSERT INTO ${table} VALUES ('${row}')`),
      all: () => db.prepare(`SELECT text FROM ${table}`).all().map(({ text }) => text),
      exec: (sql) => db.exec(sql),
    }
  },
}

const database = await kinds[kind](where)

const work = {
  exec: (sql) => database.exec(sql),
  all: () => database.all(),
  /**
   * One after the other. What fails is not acknowledged, and is tried again: this process may have been too late for
   * each gap.
   */
  async add (rows) {
    const written = []
    for (const row of rows) {
      for (let tries = 0; tries < 200 && written.at(-1) !== row; tries++) {
        try {
          await database.add(row)
          written.push(row)
        } catch { /* Not acknowledged: it does not count. */ }
        await new Promise((resolve) => { setTimeout(resolve, tries === 0 ? 0 : 2) })
      }
    }
    return written
  },
}

process.on('message', async ({ what, input }) => {
  try {
    process.send({ output: await work[what](input) ?? null })
  } catch (error) {
    process.send({ error: `${what} failed: ${error.message}` })
  }
})
process.on('disconnect', () => { process.exit() })
process.send({ output: 'ready' })
