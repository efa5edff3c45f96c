// The guide of docs/migration.md: small apps on other plugins are moved to ours, step by step, and pass their own tests
// at each step. The diffs of the guide are those between these files (test/docs/migration.test.ts).
import { cpSync } from 'node:fs'
import { join } from 'node:path'

const sql = 'CREATE TABLE users (id serial PRIMARY KEY, name varchar(50) NOT NULL)'
const apps = {
  postgres: {
    steps: ['before', 'compat', 'after'], server: 'postgres', packages: ['@fastify/postgres', 'pg'], env: { IDS: '1', COUNTS: '1' },
  },
  mysql: {
    steps: ['before', 'compat', 'after'], server: 'mariadb', packages: ['@fastify/mysql', 'mysql2'], env: { IDS: '1', COUNTS: '1' },
  },
  mongodb: { steps: ['before', 'after'], server: 'mongo', packages: ['@fastify/mongodb'], env: {} },
  redis: { steps: ['before', 'after'], server: 'redis', packages: ['@fastify/redis'], env: {} },
  knex: { steps: ['before', 'after'], server: 'postgres', packages: ['knex', 'pg'], env: { IDS: '1' } },
}

/** Makes the table of the app: by the driver that is installed there. */
const make = {
  postgres: `import pg from 'pg'; const c = new pg.Client(process.env.DB_URL); await c.connect()
    await c.query('DROP TABLE IF EXISTS users; ${sql}'); await c.end()`,
  mariadb: `import mysql from 'mysql2/promise'; const c = await mysql.createConnection(process.env.DB_URL)
    await c.query('DROP TABLE IF EXISTS users'); await c.query('${sql}'); await c.end()`,
}

export default async function migration ({ root, folder, install, run, check, server }) {
  const home = folder('apps')
  cpSync(join(root, 'test/consumers/migration'), home, { recursive: true })
  await install(home, ['fastify', 'fastify-pool', ...new Set(Object.values(apps).flatMap(({ packages }) => packages))])
  for (const [name, { steps, server: kind, env }] of Object.entries(apps)) {
    const { url } = await server(kind)
    const db = kind === 'mongo' ? new URL('/migration', url).href : url
    for (const step of steps) {
      const variables = { DB_URL: db, APP: join(home, name, `${step}.mjs`), ...env }
      if (make[kind] !== undefined) {
        const made = await run(process.execPath, ['--input-type=module', '-e', make[kind]], { cwd: home, env: variables })
        if (made.code !== 0) throw new Error(made.stderr)
      }
      const { code, stdout, stderr } = await run(process.execPath, ['--test', 'app.test.mjs'], { cwd: home, env: variables })
      check(code === 0, `${name}, ${step}: the app's own tests pass`, stdout + stderr)
    }
  }
}
