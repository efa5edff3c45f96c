// The drift lanes: `npm run test:newest` and `npm run test:oldest`, or `node test/support/drift.mjs newest|oldest
// [name@version ...]`.
//
// Copies the tree into a temporary folder, installs there the newest (oldest) version of each package that an app may
// bring, of those that the ranges of package.json allow and this Node can run, builds, and runs the type check, the
// contract, the recipes, and the tests of the backends and of the plugin. The tools are those of package-lock.json.
// With `name@version`: that one instead, also outside of its range. Of all tests only these lanes ask the registry.
//
// Prints the versions, a line per step and how long it took, with the versions that a failed one concerns. The last
// line is the count, alone.
import { spawn } from 'node:child_process'
import {
  copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync,
} from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { root } from './find.mjs'

const semver = createRequire(import.meta.url)('semver')

/**
 * Beside our own dependencies and peers: what comes with those, and what the recipes are for. Their ranges are those of
 * devDependencies.
 */
const beside = ['mongodb', 'ioredis', 'kysely', 'drizzle-orm', 'knex', 'mongoose']

/** Packages by what a file has in its name, or in that of its folder. */
const concerns = [
  [/postgresql|pgbouncer/, ['pg']],
  [/mysql/, ['mysql2']],
  [/redis/, ['ioredis', '@fastify/redis']],
  [/mongo/, ['mongodb', '@fastify/mongodb']],
  [/sqlite/, ['libsql', 'better-sqlite3']],
  [/recipes|orm|wrap/, ['kysely', 'drizzle-orm', 'knex', 'mongoose', 'mongodb', 'pg', 'mysql2', 'libsql']],
  [/fastify/, ['fastify', 'fastify-plugin']],
]

const tests = ['test/backends/', 'test/fastify/', 'test/e2e/recipes.test.ts', 'test/e2e/orm.test.ts']

const read = (folder, name) => JSON.parse(readFileSync(join(folder, name), 'utf8'))

/** Runs a command in `cwd` and hands over each line that it prints, its errors too. @returns its exit code */
async function run (file, args, { cwd, env = {}, tell = () => {} }) {
  const child = spawn(file, args, { cwd, env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'] })
  const ended = new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (code) => resolve(code ?? 1))
  })
  const passOn = (signal) => child.kill(signal)
  for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, passOn)
  const listen = async (stream) => { for await (const line of createInterface({ input: stream })) tell(line) }
  await Promise.all([listen(child.stdout), listen(child.stderr)])
  for (const signal of ['SIGINT', 'SIGTERM']) process.off(signal, passOn)
  return await ended
}

/** What a command prints, or an error with it. */
async function ask (file, args, options) {
  const lines = []
  const code = await run(file, args, { ...options, tell: (line) => lines.push(line) })
  if (code !== 0) throw new Error(`${file} ${args.join(' ')} failed:\n${lines.slice(-30).join('\n')}`)
  return lines.join('\n')
}

/** The ranges that are tested, by name. */
export function rangesOf ({ dependencies, peerDependencies, devDependencies }) {
  const others = beside.map((name) => [name, devDependencies[name]])
  return new Map([...Object.entries(dependencies), ...Object.entries(peerDependencies), ...others])
}

/** The newest or oldest version in a range, of those that this Node can run. */
async function choose (name, range, which) {
  // With the name, since npm prints bare versions where there is nothing else.
  const fields = ['name', 'version', 'engines', 'deprecated']
  const answer = JSON.parse(await ask('npm', ['view', `${name}@${range}`, ...fields, '--json'], { cwd: root }))
  const inRange = [answer].flat()
    .filter(({ version }) => semver.prerelease(version) === null && semver.satisfies(version, range))
  const sorted = inRange.sort((a, b) => semver.compare(a.version, b.version))
  if (which === 'newest') sorted.reverse()
  const runs = ({ engines, deprecated }) => semver.satisfies(process.versions.node, engines?.node ?? '*') &&
    deprecated === undefined
  const chosen = sorted.find(runs)
  if (chosen === undefined) throw new Error(`${name} ${range}: no version runs on Node ${process.versions.node}`)
  const passed = sorted.slice(0, sorted.indexOf(chosen))
  const why = ({ version, engines, deprecated }) =>
    `${version} ${deprecated === undefined ? `needs Node ${engines?.node}` : 'is deprecated'}`
  const others = passed.length > 1 ? `, and ${passed.length - 1} more` : ''
  return { version: chosen.version, skipped: passed.length === 0 ? '' : ` (not ${why(passed[0])}${others})` }
}

/** The tree as it is, committed or not, without what git ignores. */
async function copyTree (folder) {
  const names = (await ask('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], { cwd: root }))
    .split('\0')
  for (const name of names) {
    // A worktree's .cache may be a link, which the rule of git for the folder does not cover.
    if (name === '' || name === '.cache' || !existsSync(join(root, name))) continue
    mkdirSync(dirname(join(folder, name)), { recursive: true })
    copyFileSync(join(root, name), join(folder, name))
  }
  // What was built for the tests is built once for all trees.
  mkdirSync(join(root, '.cache'), { recursive: true })
  symlinkSync(join(root, '.cache'), join(folder, '.cache'))
}

/**
 * Writes these versions, and those that the lock has of the tools, into the copy's package.json, and removes its lock.
 */
function setVersions (folder, versions) {
  const own = read(folder, 'package.json')
  const { packages } = read(folder, 'package-lock.json')
  // Compiled apart, by pretest.
  const direct = [...versions].filter(([name]) => name !== 'better-sqlite3')
  for (const [name, range] of Object.entries(own.devDependencies)) {
    if (!range.startsWith('npm:')) own.devDependencies[name] = packages[`node_modules/${name}`].version
  }
  for (const [name, version] of direct) {
    own[name in own.dependencies ? 'dependencies' : 'devDependencies'][name] =
    version
  }
  // The ranges of peers are looked at here; npm would not install another version next to them.
  delete own.peerDependencies
  delete own.peerDependenciesMeta
  writeFileSync(join(folder, 'package.json'), JSON.stringify(own, null, 2))
  rmSync(join(folder, 'package-lock.json'))
}

/**
 * Whether what is loaded is what was chosen: @fastify/mongodb and @fastify/redis have their drivers as dependencies of
 * their own.
 */
function checkVersions (folder, versions) {
  const from = createRequire(join(folder, 'package.json'))
  const wrong = []
  for (const [name, version] of versions) {
    if (name === 'better-sqlite3') continue
    const there = read(folder, `node_modules/${name}/package.json`).version
    if (there !== version) wrong.push(`${name} is ${there}`)
  }
  for (const [via, name] of [['@fastify/mongodb', 'mongodb'], ['@fastify/redis', 'ioredis']]) {
    const theirs = createRequire(from.resolve(via)).resolve(name)
    if (theirs !== from.resolve(name)) wrong.push(`${via} ${versions.get(via)} does not take ${name} ${versions.get(name)}: it has its own`)
  }
  return wrong
}

async function main () {
  const [which, ...instead] = process.argv.slice(2)
  if (which !== 'newest' && which !== 'oldest') throw new Error(`'${which}': expected newest or oldest`)
  const folder = mkdtempSync(join(tmpdir(), `fastify-pool-${which}-`))
  let passed = 0
  let failed = 0
  let since = performance.now()
  const took = () => {
    const ms = performance.now() - since
    since = performance.now()
    return `${(ms / 1000).toFixed(0)} s`
  }
  try {
    const versions = new Map()
    const own = read(root, 'package.json')
    const given =
      new Map(instead.map((text) => [text.slice(0, text.lastIndexOf('@')), text.slice(text.lastIndexOf('@') + 1)]))
    for (const [name, range] of rangesOf(own)) {
      const { version, skipped } = given.has(name)
        ? { version: given.get(name), skipped: ' (as told)' }
        : await choose(name, range, which)
      versions.set(name, version)
      console.log(`${name} ${version}, of ${range}${skipped}`)
    }
    /** The versions that a file's failure may come from. */
    const of = (file) => {
      const names = concerns.flatMap(([pattern, packages]) => pattern.test(file) ? packages : [])
      const known = names.length > 0 ? [...new Set(names)] : [...versions.keys()]
      return known.map((name) => `${name} ${versions.get(name)}`).join(', ')
    }
    console.log(`ok: versions (${took()})`)

    await copyTree(folder)
    setVersions(folder, versions)
    await ask('npm', ['install', '--no-audit', '--no-fund', '--no-package-lock'], { cwd: folder })
    // Has a lock of its own, and is compiled by what that says.
    const apart = join(folder, 'test/support/better-sqlite3')
    const exact = `better-sqlite3@${versions.get('better-sqlite3')}`
    await ask('npm', ['install', '--package-lock-only', '--save-exact', '--no-audit', '--no-fund', exact],
      { cwd: apart })
    const wrong = checkVersions(folder, versions)
    for (const text of wrong) console.log(`FAILED: ${text}`)
    failed += wrong.length
    console.log(`${wrong.length === 0 ? 'ok' : 'FAILED'}: install (${took()})`)
    await ask(process.execPath, ['test/support/install.mjs'], { cwd: folder })
    console.log(`ok: servers, better-sqlite3 (${took()})`)

    // Some tests load what is published. Wrong types are the next step's to tell: the files are written all the same.
    await run('npm', ['run', '--silent', 'build'], { cwd: folder })
    const built = existsSync(join(folder, 'dist/index.js'))
    if (!built) failed++
    console.log(`${built ? 'ok' : 'FAILED'}: build (${took()})`)

    const faults = []
    const code = await run(process.execPath, [createRequire(join(folder, 'package.json')).resolve('typescript/lib/tsc.js'), '--noEmit', '--pretty', 'false'], {
      cwd: folder,
      tell: (line) => {
        const file = /^(\S+)\(\d+,\d+\): error/.exec(line)?.[1]
        if (file !== undefined) faults.push(file)
        console.log(file === undefined ? line : `${line} [${of(file)}]`)
      },
    })
    if (code === 0) passed++
    else failed += Math.max(1, faults.length)
    console.log(`${code === 0 ? 'ok' : 'FAILED'}: types (${took()})`)

    const files =
      (await ask('git', ['ls-files', '--cached', '--others', '--exclude-standard', ...tests], { cwd: root }))
        .split('\n')
    let counted
    const rc = await run(process.execPath, ['test/support/run.mjs', ...files.filter((name) => name.endsWith('.test.ts'))], {
      cwd: folder,
      tell: (line) => {
        const [, not, file, ms] = /^(not )?ok \d+ - (\S+)(?:.*time=([\d.]+)ms)?/.exec(line) ?? []
        const count = /^(\d+) passed, (\d+) failed/.exec(line)
        if (file !== undefined) console.log(`${not ? 'FAILED' : 'ok'}: ${file} (${(Number(ms ?? 0) / 1000).toFixed(0)} s)${not ? ` [${of(file)}]` : ''}`)
        else if (count !== null) counted = count
        else console.log(line)
      },
    })
    passed += Number(counted?.[1] ?? 0)
    failed += Math.max(Number(counted?.[2] ?? 0), rc === 0 ? 0 : 1)
    console.log(`${rc === 0 ? 'ok' : 'FAILED'}: tests (${took()})`)
  } catch (error) {
    console.log(`FAILED: ${error.message}`)
    failed++
  } finally {
    rmSync(folder, { recursive: true, force: true, maxRetries: 3 })
  }
  console.log(`${passed} passed, ${failed} failed`)
  process.exitCode = failed > 0 ? 1 : 0
}

if (process.argv[1] === import.meta.filename) await main()
