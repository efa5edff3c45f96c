// Rolls the declarations that `npm run build` wrote up into one file an entry, with what users can name and no more:
// else their compiler would read our insides, and the drivers' types that these name.
import { rmSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { rollup } from 'rollup'
import { dts } from 'rollup-plugin-dts'
import { root } from './find.mjs'
import { entries } from './roll.mjs'

const dist = join(root, 'dist')
/** The packages that types/drivers.ts names: a user has some of them, and no error for the others. */
const drivers = ['mongodb', 'ioredis', 'pg', 'mysql2/promise']
const unknownTypes = new RegExp(`^import \\* as \\S+ from '(?:${drivers.join('|')})';$`, 'gm')

const bundle = await rollup({
  input: Object.fromEntries(entries.map((entry) => [entry, join(dist, `${entry}.d.ts`)])),
  plugins: [dts()],
  external: (id) => !/^[./]/.test(id),
  onwarn ({ message }) { throw new Error(message) },
})
const rolled = {
  dir: dist,
  chunkFileNames: 'types/shared.d.ts',
  minifyInternalExports: false,
  plugins: [{
    name: 'drivers that may not be installed',
    renderChunk: (code) => code.replace(unknownTypes, '// @ts-ignore where it is not installed\n$&'),
  }],
}
await bundle.generate(rolled)
for (const folder of ['lib', 'types']) {
  const files = await readdir(join(dist, folder), { recursive: true })
  for (const file of files.filter((name) => name.endsWith('.d.ts'))) rmSync(join(dist, folder, file))
}
await bundle.write(rolled)
