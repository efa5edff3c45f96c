import { existsSync, readFileSync, readdirSync } from 'node:fs'
import t from 'tap'

// What the tests need and is no dependency of ours has a folder here with a lock of its own: they install nothing but
// what a lock says.
const here = new URL('./', import.meta.url)
const folders = readdirSync(here, { withFileTypes: true })
  .filter((entry) => entry.isDirectory() && existsSync(new URL(`${entry.name}/package.json`, here)))

interface Locked {
  readonly version?: string
  readonly integrity?: string
  readonly resolved?: string
  readonly dependencies?: Record<string, string>
  readonly optionalDependencies?: Record<string, string>
}

t.test('there are some', async (t) => { t.ok(folders.some(({ name }) => name === 'better-sqlite3')) })

for (const { name } of folders) {
  t.test(`${name}: its lock holds what package.json says, and names no registry`, async (t) => {
    const read = (file: string): unknown => JSON.parse(readFileSync(new URL(`${name}/${file}`, here), 'utf8'))
    // Of a package for one kind of machine there are several, and each machine installs its own.
    const { dependencies = {}, optionalDependencies = {} } =
      read('package.json') as Partial<Record<'dependencies' | 'optionalDependencies', Record<string, string>>>
    const { lockfileVersion, packages } = read('package-lock.json') as {
      lockfileVersion: number, packages: Record<string, Locked>,
    }
    t.equal(lockfileVersion, 3)
    const { '': own, ...others } = packages
    t.same([own!.dependencies ?? {}, own!.optionalDependencies ?? {}], [dependencies, optionalDependencies])
    for (const [dependency,
      version] of Object.entries({ ...dependencies, ...optionalDependencies })) t.equal(others[`node_modules/${dependency}`]?.version, version, `${dependency} in just one version`)
    t.same(Object.entries(others)
      .filter(([, { resolved, integrity }]) => resolved !== undefined || integrity === undefined)
      .map(([path]) => path), [])
  })
}
