// Rolls the declarations that `npm run build` wrote up into one file an entry, with what users can name and no more:
// else their compiler would read our insides, and the drivers' types that these name.
import { readFileSync, rmSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { rollup } from 'rollup'
import { dts } from 'rollup-plugin-dts'
import { root } from './find.mjs'
import { entries } from './roll.mjs'

const dist = join(root, 'dist')
/** The packages that types/drivers.ts names: a user has some of them, and no error for the others. */
const drivers = ['mongodb', 'ioredis', 'pg', 'mysql2/promise', '@fastify/mongodb', '@fastify/redis']
const unknownTypes = new RegExp(`^import \\* as \\S+ from '(?:${drivers.join('|')})';$`, 'gm')
/** What rollup adds where a file imports one that names a driver. TypeScript 6 asks that it is there, for nothing. */
const forNothing = new RegExp(`^import '(?:${drivers.join('|')})';\n`, 'gm')

/** The names of types/drivers.ts: whoever infers such a type names the driver's own, so no entry has to export it. */
const ofDrivers = [...readFileSync(join(root, 'types/drivers.ts'), 'utf8').matchAll(/^export type (\w+)/gm)]
  .map(([, name]) => name)
const rolled = {
  dir: dist,
  chunkFileNames: 'types/shared.d.ts',
  minifyInternalExports: false,
  plugins: [{
    name: 'drivers that may not be installed',
    renderChunk: (code) =>
      code.replace(forNothing, '').replace(unknownTypes, '// @ts-ignore where it is not installed\n$&'),
  }],
}

const bundled = () => rollup({
  input: Object.fromEntries(entries.map((entry) => [entry, join(dist, `${entry}.d.ts`)])),
  plugins: [dts()],
  external: (id) => !/^[./]/.test(id),
  onwarn ({ message }) {
    const [, unexported] = /private shared type exports with no public re-export: ([^.]+)\./.exec(message) ?? []
    if (!unexported?.split(', ').every((name) => ofDrivers.includes(name))) throw new Error(message)
  },
})

if (process.argv[1] === import.meta.filename) await roll()

/** What the package ships, without writing it. @returns each file's name, its code, whether it is an entry */
export async function rolledDeclarations () {
  const { output } = await (await bundled()).generate(rolled)
  return output
}

async function roll () {
  const bundle = await bundled()
  await bundle.generate(rolled)
  for (const folder of ['lib', 'types']) {
    const files = await readdir(join(dist, folder), { recursive: true })
    for (const file of files.filter((name) => name.endsWith('.d.ts'))) rmSync(join(dist, folder, file))
  }
  await bundle.write(rolled)
}
