import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import t from 'tap'
import { plainNode } from '../support/plain.js'

// What the paths that are taken most allocate: neither a timer, a closure, nor an asynchronous resource. A closure
// takes 64 bytes or more, a timer over 100, so the bytes tell. They are the same on each machine: nothing is timed.

const compiler = new URL('../support/typescript.mjs', import.meta.url).href
const file = fileURLToPath(new URL('../support/hot-path.ts', import.meta.url))
// A young generation of 16 MB: hardly a round meets a collection. Code that is not optimized yet allocates more: the
// compiler works in the thread of the program, and not when busy cores have time for it.
const flags = ['--min-semi-space-size=16', '--max-semi-space-size=16', '--no-concurrent-recompilation']
/** One `Lease`, and what the measuring takes. */
const LEASE = 68

const { stdout } = await promisify(execFile)(...plainNode('--import', compiler, ...flags, file))
const { bytes, resources } = JSON.parse(stdout) as {
  bytes: Record<string, number>, resources: Record<string, string[]>
}
t.comment(bytes)

t.test('an acquire that need not wait allocates a lease and nothing else', async (t) => {
  t.ok(bytes.tryAcquire! - bytes.nothing! <= LEASE, `tryAcquire and release: ${bytes.tryAcquire} bytes`)
  t.ok(bytes.acquire! - bytes.await! <= LEASE, `acquire and release: ${bytes.acquire} bytes, a bare await ${bytes.await}`)
  t.strictSame(resources.tryAcquire, [])
  t.strictSame(resources.acquire, [])
})

t.test('an acquire that waits allocates less than 350 bytes more than a bare await', async (t) => {
  t.ok(bytes.wait! - bytes.await! <= 350, `${bytes.wait} bytes, a bare await ${bytes.await}`)
  t.strictSame(resources.wait, [])
})

t.test('a request makes no asynchronous resource but those of Fastify', async (t) => {
  t.strictSame(resources['no pool'], resources.hooks)
  t.strictSame(resources['one pool'], resources.hooks)
  t.ok(bytes['one pool']! - bytes.hooks! <= 2000, `${bytes['one pool']} bytes, two empty hooks ${bytes.hooks}`)
})

t.test('where somebody listens, the event is seen in both', async (t) => {
  t.ok(bytes.listener! - bytes.tryAcquire! > 200, `${bytes.listener} bytes`)
  t.strictSame(resources.listener, ['FASTIFY_POOL'])
})
