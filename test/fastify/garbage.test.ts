import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import t from 'tap'

// What a request leaves must die young. V8 watches where literals survive, and comes to allocate those in old space;
// then they keep the requests that they reach until the next full collection, and each request costs a quarter more.
// Nothing else tells of that: so the share of all bytes that the young collections promote is measured here.

/** At least so many young collections are looked at. */
const scavenges = 10
/** At most this part of all that was allocated: 0.0002 when all is well, 0.003 on a busy machine. */
const atMost = 0.01

t.test('at 64 requests in flight nothing of a request grows old', async (t) => {
  // Without the loaders of the test runner, and without coverage: with them V8 decides otherwise.
  const compiler = new URL('../support/typescript.mjs', import.meta.url).href
  const file = fileURLToPath(new URL('../support/garbage.ts', import.meta.url))
  const child = spawn(process.execPath, ['--import', compiler, '--trace-gc-nvp', file], {
    stdio: ['ignore', 'pipe', 'inherit'], env: { PATH: process.env.PATH },
  })
  const [traced, [code]] = await Promise.all([text(child.stdout), once(child, 'close') as Promise<[number]>])
  t.equal(code, 0)
  const lines = traced.split('\n')
  // The threads of a loader collect their garbage, too: a line begins with the number of its isolate.
  const isolates = new Set<string | undefined>()
  const young = lines.slice(lines.indexOf('begun')).filter((line) => line.includes(' gc=s '))
  for (const line of young) isolates.add(/0x[0-9a-f]+/.exec(line)?.[0])
  t.equal(isolates.size, 1, 'one thread is at work')
  t.ok(young.length >= scavenges, `${young.length} young collections`)
  let allocated = 0
  let promoted = 0
  for (const line of young) {
    const of = (name: string) => Number(new RegExp(` ${name}=(\\d+)`).exec(line)![1])
    allocated += of('allocated')
    promoted += of('promoted')
  }
  const share = promoted / allocated
  t.ok(share <= atMost, `${(share * 100).toFixed(3)} % were promoted`)
  t.comment(`${young.length} young collections promoted ${(share * 100).toFixed(3)} %`)
})
