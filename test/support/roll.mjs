// Rolls the code that the compiler wrote to dist up into one file an entry, one a backend, and what they share: Node
// takes as long for a small file as for a large one, so a file for each room would triple the time of an import.
import { rmSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { join, relative } from 'node:path'
import { rollup } from 'rollup'
import { root } from './find.mjs'

const dist = join(root, 'dist')
/** Those of the package (`exports`). */
export const entries =
  ['index', 'lib/fastify/env', 'lib/wrap/kysely', 'lib/wrap/drizzle', 'lib/wrap/knex', 'lib/wrap/mongoose',
    'lib/compat/postgres', 'lib/compat/mysql']

if (process.argv[1] === import.meta.filename) await roll()

async function roll () {
  const bundle = await rollup({
    input: Object.fromEntries(entries.map((entry) => [entry, join(dist, `${entry}.js`)])),
    external: (id) => !/^[./]/.test(id),
    onwarn ({ message }) { throw new Error(message) },
  })
  const rolled = {
    dir: dist,
    minifyInternalExports: false,
    // What is loaded when it is needed keeps its place.
    chunkFileNames: ({ facadeModuleId }) => facadeModuleId ? relative(dist, facadeModuleId) : 'lib/shared/[name].js',
  }
  await bundle.generate(rolled)
  for (const folder of ['lib', 'types']) {
    const files = await readdir(join(dist, folder), { recursive: true })
    for (const file of files.filter((name) => name.endsWith('.js'))) rmSync(join(dist, folder, file))
  }
  await bundle.write(rolled)
}
