import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import t from 'tap'

// What a request leaves must die young. V8 watches where literals survive, and comes to allocate those in old space;
// from then on they keep the requests that they reach until the next full collection, and each request costs a quarter
// more. Nothing else tells of that: so the share of all bytes that the young collections promote is measured here.

/** A third of them warm up. */
const scavenges = 12
/** At most this part of all that was allocated. It is 0 when all is well, and 0.004 where a literal reaches requests. */
const atMost = 0.001

t.test('at 64 requests in flight nothing of a request grows old', async (t) => {
  const child = spawn(process.execPath,
    [...process.execArgv, '--trace-gc-nvp', fileURLToPath(new URL('../support/garbage.ts', import.meta.url))],
    { stdio: ['ignore', 'pipe', 'inherit'] })
  const [traced, [code]] = await Promise.all([text(child.stdout), once(child, 'close') as Promise<[number]>])
  t.equal(code, 0)
  const young = traced.split('\n').filter((line) => line.includes(' gc=s '))
  t.ok(young.length >= scavenges, `${young.length} young collections`)
  let allocated = 0
  let promoted = 0
  for (const line of young.slice(Math.ceil(young.length / 3))) {
    const of = (name: string) => Number(new RegExp(` ${name}=(\\d+)`).exec(line)![1])
    allocated += of('allocated')
    promoted += of('promoted')
  }
  const share = promoted / allocated
  t.ok(share <= atMost, `${(share * 100).toFixed(3)} % were promoted`)
  t.comment(`${young.length} young collections promoted ${(share * 100).toFixed(3)} %`)
})
