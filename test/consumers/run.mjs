// `npm run test:consumers [kind ...]`: the package as those who install it get it.
//
// Builds and packs the tarball, then runs each kind of consumer (the other files of this folder, or those named) in
// temporary folders. Consumers install from the registry, so this is no part of `npm test`. Shows one line for each
// check, what failed with its output, and the minutes each kind took. The last line is the count, alone:
// `N passed, N failed`.
import { spawn } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { clearPostgres } from '../support/find.mjs'
import { startMariadb, startMongo, startPostgres, startRedis } from '../support/services.js'

/** How long one command may take, in ms, unless its caller says otherwise. */
const longest = 300_000

const here = dirname(fileURLToPath(import.meta.url))
const root = join(here, '../..')
const kinds = readdirSync(here).filter((name) => name.endsWith('.mjs') && name !== 'run.mjs')
  .map((name) => basename(name, '.mjs')).sort()

const scratch = mkdtempSync(join(tmpdir(), 'fastify-pool-consumers-'))
// PostgreSQL refuses to run as root, and its files are in there.
chmodSync(scratch, 0o755)
process.env.TMPDIR = scratch

const starters = { redis: startRedis, postgres: startPostgres, mariadb: startMariadb, mongo: startMongo }
const servers = new Map()
const children = new Set()
const teardowns = []
const counts = { passed: 0, failed: 0 }

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.once(signal, () => cleanUp().finally(() => process.exit(1)))
}
try {
  await main(process.argv.slice(2))
} catch (error) {
  check(false, 'the lane ran to its end', error.stack)
} finally {
  await cleanUp()
}
console.log(`${counts.passed} passed, ${counts.failed} failed`)
process.exitCode = counts.failed > 0 ? 1 : 0

async function main (asked) {
  const unknown = asked.filter((kind) => !kinds.includes(kind))
  if (unknown.length > 0) throw new Error(`no such kind: ${unknown.join(', ')}; there are ${kinds.join(', ')}`)
  const took = []
  let since = performance.now()
  const lap = (what) => {
    took.push(`${what} ${((performance.now() - since) / 60_000).toFixed(1)}`)
    since = performance.now()
  }
  const tarball = await pack()
  lap('pack')
  for (const kind of asked.length > 0 ? asked : kinds) {
    await runKind(kind, tarball)
    lap(kind)
  }
  console.log(`minutes: ${took.join(', ')}`)
}

/** From a clean build: `npm pack` runs `prepack`, which removes the one before. @returns the tarball's path */
async function pack () {
  const to = folder('pack')
  const { code, stdout, stderr } = await run('npm', ['pack', '--pack-destination', to], { cwd: root })
  const tarball = readdirSync(to).find((name) => name.endsWith('.tgz'))
  if (code !== 0 || tarball === undefined) throw new Error(`npm pack failed:\n${stdout}${stderr}`)
  console.log(`packed ${tarball}, ${(statSync(join(to, tarball)).size / 1000).toFixed(1)} kB`)
  return join(to, tarball)
}

async function runKind (kind, tarball) {
  const before = counts.passed + counts.failed
  const tell = (ok, what, detail) => check(ok, `${kind}: ${what}`, detail)
  try {
    const { default: consumer } = await import(`./${kind}.mjs`)
    await consumer({
      tarball,
      root,
      folder: (name) => folder(`${kind}-${name}`),
      install: (folder, packages, options) => install(tarball, folder, packages, options),
      run,
      check: tell,
      server,
    })
    if (counts.passed + counts.failed === before) tell(false, 'checks something')
  } catch (error) {
    tell(false, 'ran to its end', error.stack)
  }
}

/** Counts and prints one check. @param detail what is shown where it failed */
function check (ok, what, detail = '') {
  counts[ok ? 'passed' : 'failed']++
  console.log(`${ok ? 'ok' : 'not ok'} - ${what}`)
  const text = typeof detail === 'string' ? detail : JSON.stringify(detail, null, 2)
  if (!ok && text !== '') console.log(text.trimEnd().replaceAll(/^/gm, '    '))
}

/** Makes a temporary folder, removed at the end. @returns its path */
function folder (name) {
  const path = join(scratch, name)
  mkdirSync(path, { recursive: true })
  return path
}

/**
 * Installs from the registry; 'fastify-pool' is the tarball.
 *
 * @param pm 'npm' (default) or 'pnpm'
 * @param scripts false: the packages' own install scripts do not run, so nothing is compiled
 * @throws with the package manager's output
 */
async function install (tarball, folder, packages, { pm = 'npm', scripts = true } = {}) {
  const wanted = packages.map((name) => name === 'fastify-pool' ? tarball : name)
  const [command, args] = pm === 'pnpm'
    ? [await pnpm(), ['add', ...wanted]]
    : ['npm', ['install', '--no-audit', '--no-fund', '--no-package-lock', ...wanted]]
  if (!scripts) args.push('--ignore-scripts')
  const { code, stdout, stderr } = await run(command, args, { cwd: folder })
  if (code !== 0) throw new Error(`${pm} can't install ${packages.join(' ')}:\n${stdout}${stderr}`)
}

/** Installs pnpm at the first call. @returns its command */
async function pnpm () {
  const home = folder('pnpm')
  // Of its majors one that runs on every Node that we run on.
  if (!existsSync(join(home, 'node_modules'))) await install('', home, ['pnpm@10'])
  return join(home, 'node_modules/.bin/pnpm')
}

/**
 * Runs a command to its end, and never throws.
 *
 * @param env more variables than ours; undefined takes one away
 * @param timeout in ms; a command that takes longer is killed, and its `code` is not 0
 */
function run (command, args, { cwd = scratch, env = {}, timeout = longest } = {}) {
  return new Promise((resolve) => {
    const child = spawn(command, args, {
      cwd, env: { ...environment(), ...env }, stdio: ['ignore', 'pipe', 'pipe'], timeout, killSignal: 'SIGKILL',
    })
    children.add(child)
    let [stdout, stderr] = ['', '']
    child.stdout.setEncoding('utf8').on('data', (text) => { stdout += text })
    child.stderr.setEncoding('utf8').on('data', (text) => { stderr += text })
    const ended = (code, why = '') => {
      children.delete(child)
      resolve({ code, stdout, stderr: stderr + why })
    }
    child.once('error', (error) => ended(127, `${command}: ${error.message}\n`))
    child.once('close', (code, signal) => ended(code ?? 1, signal === null ? '' : `${command} was killed: ${signal}\n`))
  })
}

/** Ours without what npm and the TypeScript loader put there for this process. */
function environment () {
  const npms = /^npm_(package|lifecycle|command|execpath|config_local_prefix|config_loglevel)/i
  const loaders = /^(NODE_OPTIONS$|TAP|_TAPJS|TSIMP)/i
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !npms.test(name) && !loaders.test(name)))
}

/**
 * A real server, one of each kind for the whole run, stopped at the end.
 *
 * @param kind 'redis', 'postgres', 'mariadb' or 'mongo'
 * @returns {Promise<{ url: string }>}
 */
function server (kind) {
  if (!servers.has(kind)) servers.set(kind, starters[kind]({ teardown: (fn) => teardowns.push(fn) }))
  return servers.get(kind).then((found) => {
    if (found === undefined) throw new Error(`no ${kind}: \`npm run pretest\` brings it, or says how to`)
    return found
  })
}

async function cleanUp () {
  for (const child of children) child.kill('SIGKILL')
  for (const fn of teardowns.splice(0).reverse()) await fn()
  for (const name of readdirSync(scratch)) clearPostgres(join(scratch, name, 'data'))
  rmSync(scratch, { recursive: true, force: true, maxRetries: 3 })
}
