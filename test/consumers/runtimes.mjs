// What loads the package at run time, each with an app that has every backend: Node's `import` and `require()`, tsx,
// Jest in ESM mode, Vitest.
import { cpSync, mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { stripVTControlCharacters } from 'node:util'

const sources = join(dirname(fileURLToPath(import.meta.url)), 'runtimes')
// Vitest 4 and later are not made for Node 20.
const vitest = Number.parseInt(process.versions.node) < 22 ? 'vitest@3' : 'vitest'

const imports = `import Fastify from 'fastify'
import pool from 'fastify-pool'
import serve from './serve.cjs'
`
const requires = `const Fastify = require('fastify')
const { default: pool } = require('fastify-pool')
const serve = require('./serve.cjs')
`
const prints = 'serve(Fastify, pool, JSON.parse(process.env.URLS!)).then(console.log)\n'
const tests = `test('a request gets a connection of every backend', async () => {
  expect(await serve(Fastify, pool, JSON.parse(process.env.URLS))).toBe(serve.expected)
}, 60_000)
`

export default async ({ folder, install, run, check, server }) => {
  const at = folder('app')
  const drivers = ['@fastify/mongodb', 'mongodb', '@fastify/redis', 'ioredis', 'pg', 'mysql2', 'libsql']
  await install(at, ['fastify-pool', 'fastify', ...drivers, 'tsx', 'jest', vitest])
  const kinds = ['redis', 'postgres', 'mariadb', 'mongo']
  const started = await Promise.all(kinds.map(async (kind) => [kind, (await server(kind)).url]))
  const env = { URLS: JSON.stringify(Object.fromEntries(started)) }
  const { expected } = (await import('./runtimes/serve.cjs')).default

  for (const name of ['node', 'tsx', 'jest', 'vitest']) {
    mkdirSync(join(at, name))
    cpSync(join(sources, 'serve.cjs'), join(at, name, 'serve.cjs'))
  }
  const write = (file, text) => writeFileSync(join(at, file), text)
  const bin = (name) => join(at, 'node_modules/.bin', name)
  const serves = async (what, command, ...args) => {
    const { code, stdout, stderr } = await run(command, args, { cwd: at, env })
    check(code === 0 && stdout.trim() === expected, what, stdout + stderr)
  }
  const passes = async (what, command, args, more) => {
    const { code, stdout, stderr } = await run(command, args, { cwd: at, env: { ...env, ...more } })
    // In CI they colour what they print.
    check(code === 0 && /\b1 passed/.test(stripVTControlCharacters(stdout + stderr)), what, stdout + stderr)
  }

  const plain = prints.replace('!', '')
  write('node/app.mjs', imports + plain)
  await serves('import', process.execPath, 'node/app.mjs')
  write('node/app.cjs', requires + plain)
  await serves('require()', process.execPath, 'node/app.cjs')
  // Typed code, whose types tsx takes away.
  write('tsx/app.mts', imports + prints)
  await serves('tsx, an ES module', bin('tsx'), 'tsx/app.mts')
  write('tsx/package.json', '{ "type": "commonjs" }')
  write('tsx/app.ts', imports + prints)
  await serves('tsx, a CommonJS module', bin('tsx'), 'tsx/app.ts')

  write('jest/app.test.mjs', imports + tests)
  write('jest/jest.config.json', '{ "testEnvironment": "node", "transform": {}, "testMatch": ["**/*.test.mjs"] }')
  const vm = { NODE_OPTIONS: '--experimental-vm-modules' }
  await passes('Jest in ESM mode', bin('jest'), ['--config', 'jest/jest.config.json'], vm)
  write('vitest/app.test.mjs', `import { expect, test } from 'vitest'\n${imports}${tests}`)
  await passes('Vitest', bin('vitest'), ['run', '--root', 'vitest'])
}
