// Which test files a part of the run is made of: they are sorted by what they import, so a new file needs no list.
import { readFileSync, readdirSync } from 'node:fs'
import { dirname, join, relative, resolve, sep } from 'node:path'
import { root } from './find.mjs'

const test = join(root, 'test')

/** The test files below a folder of test/. */
const testsIn = (folder) => readdirSync(join(test, folder), { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.test.ts')).sort().map((name) => join(test, folder, name))

/** This file and all of test/ that it imports, on whatever way. Types are no imports: they are gone at run time. */
function filesBehind (file, known = new Set()) {
  if (known.has(file)) return known
  known.add(file)
  for (const [, specifier] of readFileSync(file, 'utf8').matchAll(/^(?:import|export) (?!type).*?'(\.[^']*)'/gm)) {
    const imported = resolve(dirname(file), specifier).replace(/\.js$/, '.ts')
    if (imported.startsWith(test)) filesBehind(imported, known)
  }
  return known
}

const reaches = (file, ...names) => {
  const behind = filesBehind(file)
  return names.some((name) => behind.has(join(test, name)))
}

const told = (files) => files.map((file) => relative(root, file).split(sep).join('/'))

/**
 * The tests of pool, balance and fastify that need neither a server nor a build: their connectors are the tests' own.
 */
export function engineTests () {
  return told(['pool', 'balance', 'fastify'].flatMap(testsIn)
    .filter((file) => !reaches(file, 'support/services.ts', 'doubles/mongo-wire.ts')))
}

/** Each takes as long as twenty others, so `npm run check` leaves them to `npm run test:engine`. */
const slow = ['pool/circuit', 'balance/targets', 'fastify/holds', 'fastify/unread-replies', 'fastify/shown']

/**
 * What `npm run check` runs: of the engine's tests those that neither draw at random for long nor start processes, and
 * of the tests of pages, types and workflows those that need no server. They may need a build.
 */
export function quickTests () {
  const left = new Set([...longTests(), ...slow.map((name) => `test/${name}.test.ts`)])
  const pages = told(['docs', 'types', 'support'].flatMap(testsIn)
    .filter((file) => !reaches(file, 'support/services.ts', 'doubles/mongo-wire.ts')))
  return [...engineTests(), ...pages]
    .filter((file) => !left.has(file) && !/'node:child_process'/.test(readFileSync(join(root, file), 'utf8')))
}

/** The tests that can go on for as long as one likes: the more they draw at random, the more they find. */
export function longTests () {
  return told(testsIn('').filter((file) => reaches(file, 'support/full.ts')))
}
