import { readFileSync } from 'node:fs'
import t from 'tap'

// `npm test` has built the declarations that this is about.
const { file, listed, report } = await import('../support/api.mjs' as string) as {
  file: string
  report (): Promise<string>
  listed (code: string): { exported: string[], declared: string[] }
}
const { rolledDeclarations } = await import('../support/declarations.mjs' as string) as {
  rolledDeclarations (): Promise<ReadonlyArray<{ fileName: string, code: string }>>
}

t.test('test/types/api.md has the public face as it is', async (t) => {
  t.equal(readFileSync(file, 'utf8'), await report(), 'run `npm run api`, and see whether its change is one for users')
})

t.test('the listing has what is declared, without comments and without what is private', async (t) => {
  const { exported, declared } = listed(`
    import type { A } from './a.js'
    /** A comment. */
    declare class Pool<C> {
      #private
      private readonly secret
      readonly max: number // ten
      protected hook (): void
      acquire (): Promise<C>
    }
    type Isolation = ${Array(20).fill("'serializable'").join(' | ')}
    export { Pool as default, Isolation }
    export type { A }
  `)
  t.same(exported, ['A', 'Isolation', 'default (Pool)'])
  t.equal(declared[0], `declare class Pool<C> {
    readonly max: number;
    protected hook(): void;
    acquire(): Promise<C>;
}`)
  t.same(declared[1]?.match(/'serializable'/g)?.length, 20)
  for (const line of declared[1]?.split('\n') ?? []) t.ok(line.length <= 120, line)
  t.equal(declared.length, 2)
})

t.test('a driver that is not installed is no error in what is shipped', async (t) => {
  let imports = 0
  for (const { fileName, code } of await rolledDeclarations()) {
    const lines = code.split('\n')
    for (const [index, line] of lines.entries()) {
      if (!/^import .*'(?:pg|ioredis|mongodb|mysql2\/promise|@fastify\/(?:mongodb|redis))';$/.test(line)) continue
      imports++
      t.match(lines[index - 1], /^\/\/ @ts-ignore/, `${fileName}: ${line}`)
    }
  }
  t.ok(imports >= 6)
})
