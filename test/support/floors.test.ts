import { spawnSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const script = fileURLToPath(new URL('floors.mjs', import.meta.url))

function check (folder: string) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [script, folder], { encoding: 'utf8' })
  return { status, said: stdout + stderr }
}

t.test('imports that point down are fine', async (t) => {
  const { status, said } = check(t.testdir({
    'index.ts': "import './lib/fastify/plugin.js'\nimport 'fastify-plugin'\nexport type { A } from './types/a.js'\n",
    lib: {
      fastify: { 'plugin.ts': "import { pool } from '../pool/pool.js'\nexport { pool }\n" },
      backends: { 'redis.ts': "import type { Redis } from 'ioredis'\nimport { E } from '../engine/errors.js'\nexport const load = () => import('ioredis')\n" },
      pool: {
        'pool.ts': "import type { Engine } from '../engine/engine.js'\nimport { E } from '../engine/errors.js'\nimport { once } from 'node:events'\n",
      },
      engine: { 'engine.ts': '', 'errors.ts': '// import "../fastify/plugin.js" in a comment is none\n' },
    },
    types: { 'a.ts': "import type { FastifyRequest } from 'fastify'\nexport interface A { x: FastifyRequest }\n" },
  }))
  t.equal(said, 'floors: 11 imports in 7 files, all point down, no circle\n')
  t.equal(status, 0)
})

const wrong: Array<[promise: string, file: string, source: string, said: string]> = [
  ['an import that points up is found', 'lib/pool/up.ts', "\n\nimport { plugin } from '../fastify/plugin.js'",
    "lib/pool/up.ts:3 '../fastify/plugin.js': points up, from lib/pool to lib/fastify"],
  ['an export that points up is found', 'lib/backends/up.ts', "export * from '../../index.js'",
    "lib/backends/up.ts:1 '../../index.js': points up, from lib/backends to index.ts"],
  ['a dynamic import that points up is found', 'lib/pool/late.ts', "void import('../backends/redis.js')",
    "lib/pool/late.ts:1 '../backends/redis.js': points up"],
  ['one value among types makes it an import', 'lib/pool/mixed.ts', "import { type A, b } from '../balance/x.js'",
    "lib/pool/mixed.ts:1 '../balance/x.js': points up"],
  ['the engine imports no package', 'lib/pool/package.ts', "import fastify from 'fastify'",
    "lib/pool/package.ts:1 'fastify': lib/pool may not import the package"],
  ['the engine loads no driver, not even late', 'lib/pool/driver.ts', "void import('ioredis')",
    "lib/pool/driver.ts:1 'ioredis': lib/pool may not import the package"],
  ['an adapter imports its own library only', 'lib/wrap/knex.ts', "import { Kysely } from 'kysely'",
    "lib/wrap/knex.ts:1 'kysely': lib/wrap may not import the package"],
  ['nothing of ours imports an adapter', 'lib/fastify/plugin.ts', "import { kysely } from '../wrap/kysely.js'",
    "lib/fastify/plugin.ts:1 '../wrap/kysely.js': lib/fastify may not import lib/wrap/kysely.ts"],
  ['a backend imports its driver late', 'lib/backends/redis.ts', "import { Redis } from 'ioredis'",
    "lib/backends/redis.ts:1 'ioredis': lib/backends may not import the package"],
  ['a backend knows nothing of the pool', 'lib/backends/pool.ts', "import { Pool } from '../pool/pool.js'",
    'lib/backends may not import lib/pool/pool.ts'],
  ['types that point up are found', 'lib/pool/type.ts', "import type { Plugin } from '../fastify/plugin.js'",
    "lib/pool/type.ts:1 '../fastify/plugin.js': points up"],
  ['a type within an expression counts', 'lib/pool/inline.ts', "export type A = import('../fastify/plugin.js').A",
    "lib/pool/inline.ts:1 '../fastify/plugin.js': points up"],
  ['the engine knows no types of packages', 'lib/engine/package.ts', "import type { FastifyRequest } from 'fastify'",
    "lib/engine/package.ts:1 'fastify': lib/engine may not import the package"],
  ['only its faces know the engine', 'lib/fastify/engine.ts', "import type { Engine } from '../engine/engine.js'",
    'lib/fastify may not import lib/engine/engine.ts'],
  ['a circle is found, however long, also of types', 'lib/pool/circle-a.ts', "import './circle-b.js'",
    'lib/pool/circle-a.ts:1 is in a circle: lib/pool/circle-a.ts, lib/pool/circle-b.ts, lib/pool/circle-c.ts'],
  ['types import nothing at run time', 'types/a.ts', "import { b } from './b.js'",
    'types may not import types/b.ts at run time'],
  ['nothing of ours imports tests', 'lib/pool/test.ts', "import '../../test/support/until.js'",
    'test/support/until.ts is on no floor'],
  ['a file on no floor is found', 'lib/utils.ts', '', 'lib/utils.ts:1 is on no floor'],
]

t.test('what points up, or is not allowed, is told with file and line', async (t) => {
  const folder = t.testdir({})
  for (const [, file, source] of wrong) {
    mkdirSync(join(folder, dirname(file)), { recursive: true })
    writeFileSync(join(folder, file), source)
  }
  writeFileSync(join(folder, 'lib/pool/circle-b.ts'), "import type { C } from './circle-c.js'")
  writeFileSync(join(folder, 'lib/pool/circle-c.ts'), "export * from './circle-a.js'")
  const { status, said } = check(folder)
  t.equal(status, 1)
  t.equal(said.trim().split('\n').length, wrong.length, said)
  for (const [promise, , , expected] of wrong) t.ok(said.includes(expected), promise)
})

// Our own tree is looked at by `npm run check:floors`, which `npm test` runs.
