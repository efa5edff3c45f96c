// What `import 'fastify-pool'` loads: this code and fastify-plugin. Drivers, backends and whatever only some apps use
// are loaded when a pool, or a call, needs them.
import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** Tells each module that is imported from now on. */
const hook = `
  import { register } from 'node:module'
  register('data:text/javascript,' + encodeURIComponent(\`
    import { writeSync } from 'node:fs'
    export function load (url, context, next) {
      writeSync(2, 'loaded ' + url + '\\\\n')
      return next(url, context)
    }\`))`

/** The files that an import loads, from the root: ESM and CommonJS. */
function loadedBy (specifier: string, then = ''): string[] {
  const script = `
    ${hook}
    const { createRequire } = await import('node:module')
    const { cache } = createRequire(import.meta.url)
    const before = new Set(Object.keys(cache))
    const module = await import('${specifier}')
    ${then}
    for (const file of Object.keys(cache)) if (!before.has(file)) console.error('loaded ' + file)
    process.exit()`
  const args = specifier.endsWith('.ts') ? ['--import=@tapjs/typescript/import'] : []
  const { status, stderr } = spawnSync(process.execPath, [...args, '--input-type=module', '-e', script],
    { cwd: root, encoding: 'utf8', env: { ...process.env, NODE_OPTIONS: '' } })
  if (status !== 0) throw new Error(stderr)
  const files = stderr.split('\n').filter((line) => /^loaded (file:\/\/)?\//.test(line))
    .map((line) => line.replace(/^loaded (file:\/\/)?/, '').replace(/\?.*/, '').slice(root.length))
  return [...new Set(files)]
}

const packagesOf = (files: string[]) =>
  [...new Set(files.map((file) => /.*node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(file)?.[1]))].filter(Boolean)

for (const front of ['./index.ts', './dist/index.js']) {
  t.test(`${front}: the front door loads no driver, no backend, and no package but fastify-plugin`, async (t) => {
    const files = loadedBy(front)
    t.ok(files.includes(front.slice(2)), files.join('\n'))
    t.same(packagesOf(files), ['fastify-plugin'])
    t.same(files.filter((file) => /\/(wrap|backends\/\w+)\/(?!options|driver)/.test(file)), [])
    t.same(files.filter((file) => /lib\/fastify\/testing/.test(file)), [], 'nor what is for tests')
  })

  t.test(`${front}: a pool loads its own backend and its driver`, async (t) => {
    const files = loadedBy(front, "await module.postgresql({ host: '127.0.0.1' })")
    t.ok(packagesOf(files).includes('pg'))
    t.notOk(packagesOf(files).some((name) => ['mysql2', 'mongodb', 'ioredis', 'typebox'].includes(name!)))
    const backends = files.map((file) => /lib\/backends\/(?!shared)(\w+)\/connector/.exec(file)?.[1]).filter(Boolean)
    t.same(backends, ['postgresql'])
  })
}
