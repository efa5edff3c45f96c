import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import t from 'tap'
import { docs } from '../docs/pages.js'

const semver = createRequire(import.meta.url)('semver') as {
  satisfies (version: string, range: string): boolean
  minVersion (range: string): { readonly version: string }
}

// The package as its users get it: `npm test` has built it.
const root = new URL('../../', import.meta.url)
const run = (...args: string[]) =>
  execFileSync(process.execPath, args, { cwd: root, encoding: 'utf8', env: { ...process.env, NODE_OPTIONS: '' } })
    .trim()

t.test('can be imported and required', async (t) => {
  t.equal(run('--input-type=module', '-e',
    "import pool, { Pool } from 'fastify-pool'; console.log(typeof pool, typeof Pool)"), 'function function')
  t.equal(run('--input-type=commonjs', '-e',
    "const pool = require('fastify-pool'); console.log(typeof pool.default, typeof pool.Pool)"), 'function function')
  const usesRequired =
    "const Fastify = require('fastify'); const app = Fastify(); app.register(require('fastify-pool'), { backend: 'sqlite', url: ':memory:' }); app.ready().then(() => { console.log(app.pools.names); return app.close() })"
  t.equal(run('--input-type=commonjs', '-e', usesRequired), "[ 'db' ]")
})

t.test('each entry can be imported and required, and is of the same package', async (t) => {
  const { exports } = JSON.parse(readFileSync(new URL('package.json', root), 'utf8')) as { exports: object }
  for (const entry of Object.keys(exports).filter((name) => name !== '.' && !name.endsWith('.json'))) {
    const name = entry.replace('.', 'fastify-pool')
    t.equal(run('--input-type=module', '-e', `console.log(Object.keys(await import('${name}')).length > 0)`), 'true', name)
    t.equal(run('--input-type=commonjs', '-e', `console.log(Object.keys(require('${name}')).length > 0)`), 'true', name)
  }
  const same = `import { PoolError } from 'fastify-pool'; import Fastify from 'fastify'
    import { assertIdle } from 'fastify-pool/testing'
    try { assertIdle(Fastify()) } catch (error) { console.log(error instanceof PoolError) }`
  t.equal(run('--input-type=module', '-e', same), 'true')
})

t.test('needs no driver to be imported', async (t) => {
  const loaded =
    run('--input-type=commonjs', '-e',
      "require('fastify-pool'); console.log(Object.keys(require.cache).filter((file) => /mongodb|ioredis|libsql/.test(file)).length)")
  t.equal(loaded, '0')
})

t.test('publishes what its exports name, types first', async (t) => {
  const own = JSON.parse(readFileSync(new URL('package.json', root), 'utf8')) as {
    main: string, types: string, exports: Record<string, Record<string, string>>, files: string[]
  }
  const { exports, files } = own
  // For resolvers that do not read `exports`: TypeScript's node10, above all.
  t.same({ types: own.types, default: own.main }, exports['.'])
  t.same(Object.keys(exports['.']!), ['types', 'default'])
  for (const path of Object.values(exports['.']!)) {
    t.ok(existsSync(new URL(path, root)), path)
    t.ok(files.includes(path.slice(2)), path)
  }
  t.notMatch(readFileSync(new URL('dist/index.d.ts', root), 'utf8'), /from '\.\.\//, 'nothing outside of the package')
})

t.test('docs/ name every option, event and error code of the package', async (t) => {
  const { pluginOptionsSchema, poolOptionsSchema } = await import('../../index.js')
  const text = docs()
  const [map, one] = pluginOptionsSchema.anyOf
  const events = Object.keys(map.properties.log!.anyOf![1].properties!)
  const names =
    new Set([...Object.keys(poolOptionsSchema.properties), ...Object.keys(map.properties),
      ...Object.keys(one.properties), ...events])
  for (const name of names) t.match(text, new RegExp(`\\b${name}\\b`), name)
  for (const [code] of readFileSync(new URL('types/errors.ts', root), 'utf8')
    .matchAll(/FST_POOL_\w+/g)) t.ok(text.includes(code), code)
})

t.test('package-lock.json holds the tree of package.json, for every machine', async (t) => {
  type Kind = 'dependencies' | 'devDependencies' | 'peerDependencies' | 'peerDependenciesMeta'
  type Entry = Record<Kind, Record<string, string> | undefined> & {
    readonly name?: string
    readonly version?: string
    readonly resolved?: string
    readonly engines?: { readonly node?: string }
    readonly optional?: boolean
  }
  const read = (name: string): unknown => JSON.parse(readFileSync(new URL(name, root), 'utf8'))
  const own = read('package.json') as Entry & { readonly engines: { readonly node: string } }
  const { lockfileVersion, packages } = read('package-lock.json') as {
    lockfileVersion: number, packages: Record<string, Entry>,
  }
  t.equal(lockfileVersion, 3)
  const locked = packages['']!
  for (const field of ['name', 'version', 'engines', 'dependencies', 'devDependencies', 'peerDependencies', 'peerDependenciesMeta'] as const) {
    t.same(locked[field], own[field], `${field}: run npm install and commit the lock`)
  }
  for (const field of ['dependencies', 'devDependencies', 'peerDependencies'] as const) {
    for (const [name, range] of Object.entries(own[field] ?? {})) {
      const there = packages[`node_modules/${name}`]
      // A peer that is optional, and that no test of ours is developed against, is not in the tree.
      if (there === undefined && field === 'peerDependencies' &&
        own.peerDependenciesMeta?.[name] !== undefined) continue
      t.ok(semver.satisfies(there?.version ?? 'none', range.replace(/^npm:.*@/, '')),
        `${name} ${there?.version ?? 'is missing'} is in ${range}`)
    }
  }
  const oldest = semver.minVersion(own.engines.node).version
  for (const [path, { resolved, engines, optional }] of Object.entries(packages)) {
    if (resolved !== undefined) t.fail(`${path} names a registry: set omit-lockfile-registry-resolved`)
    if (engines?.node !== undefined && optional !== true &&
      !semver.satisfies(oldest, engines.node)) t.fail(`${path} needs Node ${engines.node}`)
  }
  // Made without node_modules, so that the platforms of others are in it too.
  for (const platform of [
    'darwin-arm64', 'darwin-x64', 'linux-arm64-gnu', 'linux-x64-gnu', 'linux-x64-musl', 'win32-x64-msvc',
  ]) {
    t.ok(packages[`node_modules/@libsql/${platform}`], `libsql for ${platform}`)
  }
})
