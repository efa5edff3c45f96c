// fastify-pool bundled into the app by esbuild, Rollup and webpack, to CommonJS and to ESM: every driver is a package
// beside the bundle, and every backend must start, by its name and by the option `driver`.
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'

const drivers = ['@fastify/mongodb', '@fastify/redis', 'mongodb', 'ioredis', 'pg', 'mysql2', 'libsql']

/** An app with a route for each backend, which prints what each answered. */
const app = `
import Fastify from 'fastify'
import pool from 'fastify-pool'

async function main () {
  const app = Fastify()
  // Those that were imported by the app's own hand, and are in no bundle either.
  const { default: modules } = process.env.GIVEN === 'yes' ? await import('./drivers.mjs') : { default: {} }
  const { PG, MYSQL, REDIS, MONGO } = process.env
  const options = {
    postgresql: { url: PG },
    mysql: { url: MYSQL },
    redis: { url: REDIS },
    mongodb: { url: MONGO },
    sqlite: { url: ':memory:' },
  }
  const pools = Object.fromEntries(Object.entries(options).map(([backend, { url }]) => [backend, { backend, url, max: 1, driver: modules[backend] }]))
  await app.register(pool, { pools })
  app.get('/', async (request) => ({
    postgresql: (await request.postgresql.query('SELECT 1 AS n')).rows[0].n,
    mysql: (await request.mysql.query('SELECT 1 AS n'))[0][0].n,
    redis: await request.redis.ping(),
    mongodb: (await request.mongodb.command({ ping: 1 })).ok,
    sqlite: request.sqlite.prepare('SELECT 1 AS n').get().n,
    shared: [await app.redis.ping(), (await app.mongo.db.command({ ping: 1 })).ok],
  }))
  console.log((await app.inject('/')).body)
  await app.close()
}
main().catch((error) => {
  console.error(error)
  process.exitCode = 1
})
`
const answer = { postgresql: 1, mysql: 1, redis: 'PONG', mongodb: 1, sqlite: 1, shared: ['PONG', 1] }

const given = `
import pg from 'pg'
import mysql from 'mysql2'
import { Redis } from 'ioredis'
import * as mongodb from 'mongodb'
import Database from 'libsql'
export default { postgresql: pg, mysql, redis: Redis, mongodb, sqlite: Database }
`

/** Each makes the bundle \`out\` of app.mjs. */
const bundlers = {
  esbuild: ({ format, out }) => `
    import { build } from 'esbuild'
    await build({
      entryPoints: ['app.mjs'], outfile: '${out}', bundle: true, platform: 'node', format: '${format}', logLevel: 'error',
      external: [...externals, './drivers.mjs'],
      // For the CommonJS packages that are in the bundle.
      banner: ${format === 'esm' ? "{ js: \"import { createRequire } from 'node:module'; const require = createRequire(import.meta.url)\" }" : '{}'},
    })`,
  rollup: ({ format, out }) => `
    import { rollup } from 'rollup'
    import resolve from '@rollup/plugin-node-resolve'
    import commonjs from '@rollup/plugin-commonjs'
    import json from '@rollup/plugin-json'
    const bundle = await rollup({
      input: 'app.mjs', external: [/^node:/, ...externals, './drivers.mjs'].map((name) => name), logLevel: 'silent',
      plugins: [resolve({ preferBuiltins: true }), commonjs(), json()],
    })
    await bundle.write({ file: '${out}', format: '${format}', inlineDynamicImports: true })`,
  webpack: ({ format, out }) => `
    import webpack from 'webpack'
    const module = ${format === 'esm'}
    const external = Object.fromEntries([...externals, './drivers.mjs'].map((name) => [name, (name === './drivers.mjs' ? 'import ' : module ? 'module ' : 'commonjs ') + name]))
    const stats = await new Promise((resolve, reject) => webpack({
      mode: 'production', target: 'node20', entry: './app.mjs', externals: external, experiments: { outputModule: module },
      output: { path: process.cwd(), filename: '${out}', library: { type: module ? 'module' : 'commonjs2' }, chunkFormat: module ? 'module' : 'commonjs' },
    }, (error, stats) => error ? reject(error) : resolve(stats)))
    if (stats.hasErrors()) throw new Error(stats.toString())`,
}

export default async ({ folder, install, run, check, server }) => {
  const tools =
    ['esbuild', 'rollup', '@rollup/plugin-node-resolve', '@rollup/plugin-commonjs', '@rollup/plugin-json', 'webpack']
  const at = folder('bundlers')
  await install(at, ['fastify-pool', 'fastify', ...drivers, ...tools])
  const [PG, MYSQL, REDIS, MONGO] =
    (await Promise.all(['postgres', 'mariadb', 'redis', 'mongo'].map((kind) => server(kind)))).map(({ url }) => url)
  const env = { PG, MYSQL, REDIS, MONGO }
  writeFileSync(join(at, 'app.mjs'), app)
  writeFileSync(join(at, 'drivers.mjs'), given)
  for (const [name, script] of Object.entries(bundlers)) {
    for (const [format, out] of Object.entries({ cjs: `${name}.cjs`, esm: `${name}.mjs` })) {
      const make = `${name}-${format}.mjs`
      writeFileSync(join(at, make), `const externals = ${JSON.stringify(drivers)}\n${script({ format, out })}\n`)
      const made = await run(process.execPath, [make], { cwd: at })
      check(made.code === 0, `${name} makes a ${format} bundle`, made)
      for (const GIVEN of ['no', 'yes']) {
        const { code, stdout, stderr } = await run(process.execPath, [out], { cwd: at, env: { ...env, GIVEN } })
        const how = GIVEN === 'yes' ? 'with the drivers that it is given' : 'with the drivers that it finds'
        check(code === 0 && stdout.trim() === JSON.stringify(answer),
          `every backend starts in a ${format} bundle of ${name}, ${how}`, stdout + stderr)
      }
    }
  }
}
