// Strict TypeScript, `skipLibCheck: false`, with one driver at a time and with none.
//
// Each app is compiled by each TypeScript in each way of resolving modules that it has. Drivers' own types fail under
// some compilers, so an error counts only if a control project without us, which imports the same packages, lacks it.
import { cpSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const sources = join(dirname(fileURLToPath(import.meta.url)), 'types')

/** What a project installs besides us and Fastify; of these the control imports the ones that have a name here. */
const projects = {
  none: [],
  mongodb: ['@fastify/mongodb', 'mongodb'],
  redis: ['@fastify/redis', 'ioredis'],
  postgresql: ['pg', '@types/pg'],
  mysql: ['mysql2'],
  sqlite: ['libsql'],
}
/** What the control imports where that is not the package's name. */
const imported = { '@types/pg': [], mysql2: ['mysql2', 'mysql2/promise'] }

const versions = ['5.4', '5.5', '5.6', '5.7', '5.8', '5.9', '6.0', 'latest']
const nodenext = { module: 'nodenext', moduleResolution: 'nodenext' }
const bundler = { module: 'esnext', moduleResolution: 'bundler' }
const ways = [
  { way: 'ESM nodenext', format: 'esm', options: nodenext },
  { way: 'ESM node16', format: 'esm', options: { module: 'node16', moduleResolution: 'node16' } },
  { way: 'ESM bundler', format: 'esm', options: bundler },
  // Before 5.8 a CommonJS module may not require an ES module.
  { way: 'CommonJS nodenext', format: 'cjs', from: '5.8', options: nodenext },
  { way: 'CommonJS node10', format: 'cjs', to: '5.9', options: { module: 'commonjs', moduleResolution: 'node10' } },
]
const strict = {
  strict: true,
  skipLibCheck: false,
  noEmit: true,
  target: 'es2022',
  types: ['node'],
  esModuleInterop: true,
}

export default async ({ root, folder, install, run, check }) => {
  const at = folder('projects')
  const aliases = versions.map((version) => `${aliasOf(version)}@npm:typescript@${version}`)
  const ours = Object.entries(JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).dependencies)
  const shared = ['fastify', '@types/node@20', ...ours.map(([name, range]) => `${name}@${range}`)]
  await install(at, [...shared, ...aliases], { scripts: false })
  for (const [name, packages] of Object.entries(projects)) await makeProject(install, at, name, packages)

  await inTurns(versions, Math.min(availableParallelism(), 4), async (version) => {
    const home = join(at, 'node_modules', aliasOf(version))
    const exact = JSON.parse(readFileSync(join(home, 'package.json'), 'utf8')).version
    const pairs = Object.keys(projects)
      .flatMap((project) => waysOf(version).map((way) => ({ project, ...way })))
    const jobs = pairs.map(({ project, way, format, options }) => ({
      name: `${exact} ${way}, ${project}`,
      cwd: join(at, project, format),
      files: ['app.ts'],
      options: { ...strict, ...options },
      // What all projects have is checked once.
      beside: project === 'none' && way === ways[0].way ? undefined : join(at, 'node_modules'),
    }))
    const found = await compile(run, home, jobs)
    const doubtful = jobs.filter(({ name }) => found[name]?.length > 0)
    const controls = await compile(run, home, doubtful.map((job) => ({ ...job, files: ['control.ts'] })))
    for (const { name } of jobs) {
      const theirs = new Set(controls[name]?.map(unplaced))
      const ours = found[name]?.filter((line) => !theirs.has(unplaced(line))) ?? ['it was not compiled']
      check(ours.length === 0, name, ours.join('\n'))
    }
  })
}

function waysOf (version) {
  return ways.filter(({ from = versions[0], to = versions.at(-1) }) => {
    const [at, first, last] = [version, from, to].map((one) => versions.indexOf(one))
    return at >= first && at <= last
  })
}

const aliasOf = (version) => `typescript-${version}`

/**
 * A folder with its own node_modules: the package finds only what this project has installed. What the folder around it
 * has too is taken from there, so that it is parsed once for all projects.
 */
async function makeProject (install, at, name, packages) {
  const home = join(at, name)
  mkdirSync(home)
  writeFileSync(join(home, 'package.json'), '{ "private": true }')
  await install(home, ['fastify-pool', 'fastify', '@types/node@20', ...packages], { scripts: false })
  for (const { path, version } of packagesIn(join(home, 'node_modules'))) {
    const shared = join(at, 'node_modules', path, 'package.json')
    if (path !== 'fastify-pool' && existsSync(shared) && JSON.parse(readFileSync(shared, 'utf8')).version === version) {
      rmSync(join(home, 'node_modules', path), { recursive: true })
    }
  }
  const imports = ['fastify', ...packages.flatMap((one) => imported[one] ?? [one])]
  const control = imports.map((one, i) => `import * as m${i} from '${one}'\nexport { m${i} }\n`).join('')
  for (const [format, type] of [['esm', 'module'], ['cjs', 'commonjs']]) {
    mkdirSync(join(home, format))
    writeFileSync(join(home, format, 'package.json'), JSON.stringify({ type }))
    writeFileSync(join(home, format, 'control.ts'), control)
    cpSync(join(sources, `${name}.ts`), join(home, format, 'app.ts'))
  }
}

function packagesIn (modules) {
  const names = readdirSync(modules).filter((name) => !name.startsWith('.'))
  const scoped = (scope) => readdirSync(join(modules, scope)).map((name) => `${scope}/${name}`)
  return names.flatMap((name) => name.startsWith('@') ? scoped(name) : [name])
    .map((path) => ({ path, version: JSON.parse(readFileSync(join(modules, path, 'package.json'), 'utf8')).version }))
}

/** @returns the diagnostics of each job, by its name */
async function compile (run, home, jobs) {
  if (jobs.length === 0) return {}
  // From 7 on the compiler is a program, without this API.
  if (existsSync(join(home, 'lib/typescript.js'))) {
    const script = join(sources, 'compile.mjs')
    const args = [script, home, JSON.stringify(jobs)]
    const { code, stdout, stderr } = await run(process.execPath, args, { timeout: 900_000 })
    if (code !== 0) throw new Error(`${home} failed:\n${stdout}${stderr}`)
    return JSON.parse(stdout)
  }
  const results = {}
  for (const { name, cwd, files, options } of jobs) {
    const config = join(cwd, `tsconfig.${files[0]}.json`)
    writeFileSync(config, JSON.stringify({ compilerOptions: options, files }))
    const tsc = createRequire(join(home, 'package.json')).resolve('./bin/tsc')
    const { code, stdout, stderr } = await run(process.execPath, [tsc, '--pretty', 'false', '-p', config], { cwd })
    const lines = stdout.split('\n').filter((line) => line !== '')
    results[name] = code === 0 || lines.length > 0 ? lines : [`tsc ended with ${code}: ${stderr}`]
  }
  return results
}

/** A diagnostic without its line and column, and as seen from any folder. */
const unplaced = (line) => line.replace(/\(\d+,\d+\)/, '').replace(/^(\.\.\/)+/, '')

/** Calls `fn` for each item, so many at a time. */
async function inTurns (items, width, fn) {
  const left = [...items]
  const worker = async () => { while (left.length > 0) await fn(left.shift()) }
  await Promise.all(Array.from({ length: width }, worker))
}
