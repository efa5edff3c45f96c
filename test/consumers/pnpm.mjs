// pnpm's strict node_modules: a package sees only what it names itself. The app has what the README's install lines
// name, and nothing else, so whatever an app imports has to be in them. The pages of docs/ say what theirs import.
import { cpSync, readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { builtinModules } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const serve = join(dirname(fileURLToPath(import.meta.url)), 'runtimes/serve.cjs')

const typed = `import type { Redis } from 'ioredis'
import type { Db } from 'mongodb'
import type { Connection } from 'mysql2/promise'
import type { Client } from 'pg'
import Fastify from 'fastify'
import pool, { postgresql } from 'fastify-pool'
import type { MongoConnector, MysqlConnector, RedisConnector, SqliteDatabase } from 'fastify-pool'

declare module 'fastify-pool' {
  interface RequestPools { docs: Db, cache: Redis, pg: Client, my: Connection, lite: SqliteDatabase }
}

const app = Fastify()
await app.register(pool, { backend: 'redis', name: 'cache' })
const client: Redis = app.pools.get<'cache', RedisConnector>('cache').backend.client
const database: string = app.pools.get<'docs', MongoConnector>('docs').backend.database
const system: 'mysql' = app.pools.get<'my', MysqlConnector>('my').backend.system
const connector = await postgresql({ url: 'postgres://localhost' })
const connection: Client = await connector.create(new AbortController().signal)
// @ts-expect-error The connector's connection is pg's, not any.
connection.nonsense()
// @ts-expect-error The connector's client is ioredis', not any.
client.nonsense()
app.get('/', (request) => [request.pg.query(database), request.lite.open, request.my.threadId, system])
`

export default async ({ root, folder, install, run, check, server }) => {
  const readme = readFileSync(join(root, 'README.md'), 'utf8')
  const docs = readdirSync(join(root, 'docs')).filter((name) => name.endsWith('.md'))
    .map((name) => readFileSync(join(root, 'docs', name), 'utf8')).join('\n')
  for (const [name, text] of [['the README says', readme], ['README and docs/ say', `${readme}\n${docs}`]]) {
    const lines = [...text.matchAll(/^.*npm install .*$/gm)].map(([line]) => line)
    const words = new Set(lines.flatMap((line) => line.split(/[\s,:()`]+/)))
    const missing = importedIn(text).filter((name) => !words.has(name))
    check(missing.length === 0, `${name} how to install whatever the examples import`, missing.join('\n'))
  }

  const named = [...readme.matchAll(/^npm install ([^#\n]*)/gm)].flatMap(([, args]) => args.trim().split(/\s+/))
    .filter((name, i, all) => !name.startsWith('-') && all.indexOf(name) === i)
  const at = folder('app')
  await install(at, [...named, '@types/node@20', 'typescript@5.9'], { pm: 'pnpm' })

  cpSync(serve, join(at, 'serve.cjs'))
  writeFileSync(join(at, 'app.mjs'), `import Fastify from 'fastify'
import pool from 'fastify-pool'
import serve from './serve.cjs'
serve(Fastify, pool, JSON.parse(process.env.URLS)).then(console.log)
`)
  const kinds = ['redis', 'postgres', 'mariadb', 'mongo']
  const started = await Promise.all(kinds.map(async (kind) => [kind, (await server(kind)).url]))
  const env = { URLS: JSON.stringify(Object.fromEntries(started)) }
  const { expected } = (await import('./runtimes/serve.cjs')).default
  const app = await run(process.execPath, ['app.mjs'], { cwd: at, env })
  check(app.code === 0 && app.stdout.trim() === expected, 'an app with every backend', app.stdout + app.stderr)

  writeFileSync(join(at, 'typed.mts'), typed)
  const options = ['--strict', '--noEmit', '--target', 'es2022', '--module', 'nodenext', '--types', 'node', 'typed.mts']
  // Our declarations only: types.mjs checks them all, but with npm's flat node_modules.
  const tsc = join(at, 'node_modules/.bin/tsc')
  const types = await run(tsc, ['--pretty', 'false', '--skipLibCheck', ...options], { cwd: at })
  check(types.code === 0, 'its types', types.stdout + types.stderr)
}

/** The packages that a Markdown text's code imports. */
function importedIn (text) {
  const code = [...text.matchAll(/^```ts(?! of )[^\n]*\n([\s\S]*?)^```/gm)].map(([, block]) => block).join('\n')
  const names = [...code.matchAll(/^import .* from '([^'.][^']*)'/gm)].map(([, name]) => name)
  const packages = names.map((name) => name.split('/').slice(0, name.startsWith('@') ? 2 : 1).join('/'))
  return [...new Set(packages)].filter((name) => !name.startsWith('node:') && !builtinModules.includes(name))
}
