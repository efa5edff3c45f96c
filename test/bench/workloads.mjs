// What is measured. A workload is { about, needs, base, metric, run }: `run(make, options)` is called in a process of
// its own and gives its figures; `base` is the pool that the ratio of `metric` is taken to, or 'best peer'; `needs` are
// the words of what a pool can lack (see pools.mjs). `rounds` is the most that pay where the figure hardly varies,
// `quickRounds` that of a quick run; `everyone` has the peers in each round and not only in each third; `together`: all
// pools at the same time, since they only sit there; `full` and `quick` are the options of the two kinds of run.
import { createHook } from 'node:async_hooks'
import { setImmediate as immediate, setTimeout as sleep } from 'node:timers/promises'
import { Conn } from './pools.mjs'

const now = () => performance.now()
const cpuMs = (since) => { const { user, system } = process.cpuUsage(since); return (user + system) / 1000 }

/** `count` of its connections at once. */
const take = (pool, count) => Promise.all(Array.from({ length: count }, () => pool.acquire()))

/** Makes all that it may have and gives them back. */
async function warm (pool, max) {
  for (const c of await take(pool, max)) pool.release(c)
  await immediate()
  await immediate()
}

// --- Speed -----------------------------------------------------------------------------------------------------------

/** W1: one caller, nobody waits. */
const alone = (mode) => async (make, { ms, warmMs }) => {
  const pool = make(10)
  await warm(pool, 10)
  const batch = 2000
  const loops = {
    async await () { for (let i = 0; i < batch; i++) { const c = await pool.acquire(); pool.release(c) } },
    sync () { for (let i = 0; i < batch; i++) { const c = pool.tryAcquire(); pool.release(c) } },
  }
  const loop = loops[mode]
  async function timed (limit) {
    const begun = now()
    let n = 0
    let passed
    do {
      await loop()
      n += batch
      passed = now() - begun
    } while (passed < limit)
    return passed * 1e6 / n
  }
  await timed(warmMs)
  return { ns: await timed(ms) }
}

/** W2: ten times as many as there are connections. */
const contended = (gap) => async (make, { ms, warmMs }) => {
  const max = 100
  const pool = make(max)
  await warm(pool, max)
  const hop = () => new Promise((resolve) => { setImmediate(resolve) })
  let deadline = 0
  let stop = false
  let n = 0
  const over = () => {
    if ((++n & 1023) === 0 && now() > deadline) stop = true
    return stop
  }
  // Two loops and not one with a parameter: the await of nothing is a part of what is measured.
  const loops = {
    async microtask () { do { const c = await pool.acquire(); await null; pool.release(c) } while (!over()) },
    async setImmediate () { do { const c = await pool.acquire(); await hop(); pool.release(c) } while (!over()) },
  }
  const loop = loops[gap]
  async function timed (limit) {
    stop = false
    n = 0
    const begun = now()
    deadline = begun + limit
    await Promise.all(Array.from({ length: max * 10 }, loop))
    return (now() - begun) * 1e6 / n
  }
  await timed(warmMs)
  await immediate()
  return { ns: await timed(ms) }
}

/** W3: `n` come at once for 10 connections, and are served. The median of the repetitions. */
const crowd = (n) => async (make, { ms }) => {
  const max = 10
  const pool = make(max)
  await warm(pool, max)
  async function once (n) {
    const held = await take(pool, max)
    let done = 0
    let finish
    const all = new Promise((resolve) => { finish = resolve })
    const served = (c) => { pool.release(c); if (++done === n) finish() }
    const begun = now()
    for (let i = 0; i < n; i++) pool.acquire().then(served)
    const enqueued = now()
    // Some pools put into line in a microtask or nextTick.
    await immediate()
    const opened = now()
    for (const c of held) pool.release(c)
    await all
    const drained = now()
    return {
      enqueueNs: (enqueued - begun) * 1e6 / n,
      drainNs: (drained - opened) * 1e6 / n,
      ns: (enqueued - begun +
      drained - opened) * 1e6 / n
    }
  }
  for (let i = 0; i < 60; i++) await once(2000)
  const runs = []
  const end = now() + ms
  while (runs.length < 3 || (now() < end && runs.length < 200)) {
    if (n >= 10000) globalThis.gc()
    runs.push(await once(n))
  }
  const { ns, enqueueNs, drainNs } = runs.sort((a, b) => a.ns - b.ns)[runs.length >> 1]
  return { ns, enqueueNs, drainNs }
}

/** W5: half of `n` who wait leave the line, then the others are served. */
const leaving = (how) => async (make, { n, timeoutMs }) => {
  const max = 10
  const pool = make(max, how === 'timeout' ? { timeoutMs } : {})
  await warm(pool, max)
  const held = await take(pool, max)
  const half = n >> 1
  let ok = 0
  let failed = 0
  let finish
  const all = new Promise((resolve) => { finish = resolve })
  let leave
  const left = new Promise((resolve) => { leave = resolve })
  const on = (c) => { ok++; pool.release(c); if (ok + failed === n) finish() }
  const off = () => { if (++failed === half) leave(); if (ok + failed === n) finish() }
  let last = now()
  let blockMs = 0
  const watch = setInterval(() => { const t = now(); blockMs = Math.max(blockMs, t - last); last = t }, 1)
  const cpu = process.cpuUsage()
  if (how === 'timeout') {
    const begun = now()
    for (let i = 0; i < half; i++) pool.acquire().then(on, off)
    // The younger half comes late enough to outlive the older, and is served right after it has left.
    await sleep(Math.max(timeoutMs * 0.6 - (now() - begun), 1))
    for (let i = half; i < n; i++) pool.acquire().then(on, off)
    await left
  } else {
    const controllers = []
    for (let i = 0; i < n; i++) {
      if (i % 2 === 0) {
        pool.acquire().then(on, off)
        continue
      }
      const controller = new AbortController()
      controllers.push(controller)
      pool.acquire(controller.signal).then(on, off)
    }
    await immediate()
    for (const controller of controllers) controller.abort()
    await immediate()
  }
  const opened = now()
  for (const c of held) pool.release(c)
  await all
  const drainMs = now() - opened
  clearInterval(watch)
  return { cpuMs: cpuMs(cpu), blockMs, drainMs, failed, served: ok }
}

// --- What it costs to be there ---------------------------------------------------------------------------------------

/** W6: the CPU time of idle connections that are looked after. */
async function idling (make, { ms }) {
  const max = 1000
  const pool = make(max, { idleMs: 60000, reapMs: 1000 })
  await warm(pool, max)
  await sleep(1000)
  globalThis.gc()
  const heap = process.memoryUsage().heapUsed
  const cpu = process.cpuUsage()
  await sleep(ms)
  // By the second, whatever the length of the run.
  return { cpuMsPerSecond: cpuMs(cpu) / ms * 1000, grownKB: (process.memoryUsage().heapUsed - heap) / 1024 }
}

/** W7: what stays on the heap, counted after a full collection. */
async function memory (make) {
  const settle = async () => {
    for (let i = 0; i < 4; i++) {
      await immediate()
      globalThis.gc()
    }
    return process.memoryUsage().heapUsed
  }
  const max = 10000
  {
    // Compiled code and feedback, out of the way.
    const pool = make(50)
    for (let i = 0; i < 30; i++) await warm(pool, 50)
    const held = await take(pool, 50)
    const waiting = Array.from({ length: 2000 }, () => pool.acquire().then((c) => { pool.release(c) }))
    for (const c of held) pool.release(c)
    await Promise.all(waiting)
    await pool.close()
  }
  const before = await settle()
  const pool = make(max)
  let held = await take(pool, max)
  const leased = (await settle() - before) / max
  for (const c of held) pool.release(c)
  held = null
  const idle = (await settle() - before) / max
  held = await take(pool, max)
  const n = 20000
  const line = new Array(n)
  const empty = await settle()
  // The promise and what its caller does next are a part of it: for L2 they are nearly all.
  const next = () => {}
  for (let i = 0; i < n; i++) {
    line[i] = pool.acquire()
    line[i].then(next)
  }
  const waiting = (await settle() - empty) / n
  // None of it may be collected before it is counted.
  globalThis.kept = [pool, held, line]
  return { idleBytes: idle, leaseBytes: leased - idle, waiterBytes: waiting }
}

/** Timers made by acquires of which every second one or so waits: eleven callers for ten connections. */
async function timers (make) {
  const max = 10
  const pool = make(max)
  await warm(pool, max)
  const cycles = 1000
  let made = 0
  const hook = createHook({ init (_, type) { if (type === 'Timeout') made++ } }).enable()
  const caller = async () => {
    for (let i = 0; i < cycles; i++) {
      const c = await pool.acquire()
      await new Promise((resolve) => { setImmediate(resolve) })
      pool.release(c)
    }
  }
  await Promise.all(Array.from({ length: max + 1 }, caller))
  for (let i = 0; i < cycles; i++) pool.release(await pool.acquire())
  hook.disable()
  return { timersPerAcquire: made / (cycles * (max + 2)) }
}

// --- How long people wait --------------------------------------------------------------------------------------------

/** W8: four callers for each connection, 1 ms of work. */
async function fairness (make, { ms }) {
  const max = 10
  const pool = make(max)
  await warm(pool, max)
  const waits = []
  let asked = 0
  let granted = -1
  let overtakes = 0
  const cpu = process.cpuUsage()
  const end = now() + ms
  async function caller () {
    while (now() < end) {
      const begun = now()
      const ticket = asked++
      const c = await pool.acquire()
      waits.push(now() - begun)
      if (ticket < granted) overtakes++
      else granted = ticket
      await sleep(1)
      pool.release(c)
    }
  }
  await Promise.all(Array.from({ length: max * 4 }, caller))
  const sorted = waits.slice(waits.length >> 3).sort((a, b) => a - b)
  const at = (part) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))]
  return { p50ms: at(0.5), p99ms: at(0.99), maxMs: at(1), overtakes, cpuMs: cpuMs(cpu) }
}

/**
 * A create that takes `ms`, and books of what was begun and what was established. A pool that aborts one has not
 * established it.
 */
function connects (ms) {
  const books = { begun: 0, established: 0 }
  const create = (signal) => new Promise((resolve, reject) => {
    books.begun++
    const timer = setTimeout(() => {
      books.established++
      resolve(new Conn())
    }, ms)
    signal?.addEventListener('abort', () => {
      clearTimeout(timer)
      reject(signal.reason)
    })
  })
  return { books, create }
}

async function work (pool, ms) {
  const c = await pool.acquire()
  await sleep(ms)
  pool.release(c)
}

/**
 * 100 requests of 5 ms at once, no connection yet, 20 at most, 50 ms to make one: 50 + 100 / 20 * 5 ms where nothing is
 * wasted.
 */
async function cold (make) {
  const { books, create } = connects(50)
  const pool = make(20, { create })
  const begun = now()
  await Promise.all(Array.from({ length: 100 }, () => work(pool, 5)))
  const ms = now() - begun
  return { ms, timesIdeal: ms / 75, established: books.established }
}

/**
 * One connection that has served 100 in turn; then 10 at once with 1 ms of work, where another connection would take 50
 * ms.
 */
async function burst (make) {
  const { books, create } = connects(50)
  const pool = make(10, { create })
  for (let i = 0; i < 100; i++) pool.release(await pool.acquire())
  // Ten in turn, as this machine's timers have it at this moment.
  const first = now()
  for (let i = 0; i < 10; i++) await sleep(1)
  const ideal = now() - first
  const before = { ...books }
  const begun = now()
  await Promise.all(Array.from({ length: 10 }, () => work(pool, 1)))
  const ms = now() - begun
  // Those under way arrive, or not.
  await sleep(200)
  return {
    ms, timesIdeal: ms / ideal, begun: books.begun - before.begun, established: books.established - before.established,
  }
}

const speed = { base: 'L2', metric: 'ns', full: { ms: 300, warmMs: 150 }, quick: { ms: 150, warmMs: 100 } }
const crowded = { ...speed, needs: ['line'], full: { ms: 300 }, quick: { ms: 100 } }
const departures = { n: 100000, timeoutMs: 1000 }
const shed = { base: 'best peer', metric: 'cpuMs', everyone: true, quickRounds: 1, full: departures, quick: departures }
const still = { full: {}, quick: {} }

export const workloads = {
  'W1 await': { ...speed, about: 'One caller, `await acquire()` then `release()`, max 10', needs: [], base: 'L1', run: alone('await') },
  'W1 sync': { ...speed, about: 'The same with `tryAcquire()`', needs: ['tryAcquire'], base: 'L0', run: alone('sync') },
  'W2 microtask': { ...speed, about: '1,000 callers for 100 connections, a microtask of work', needs: ['line'], run: contended('microtask') },
  'W2 setImmediate': {
    ...speed, about: 'The same with a `setImmediate` of work', needs: ['line'], run: contended('setImmediate'),
  },
  'W3 1k': { ...crowded, about: '1,000 at once for 10 connections', run: crowd(1000) },
  'W3 10k': { ...crowded, about: '10,000', run: crowd(10000) },
  'W3 100k': { ...crowded, about: '100,000', needs: ['line', 'deep'], run: crowd(100000) },
  'W3 300k': { ...crowded, about: '300,000', needs: ['line', 'deep'], run: crowd(300000) },
  'W5 timeout': {
    ...shed,
    about: '100,000 wait, the older half of them times out',
    needs: ['line', 'deep',
      'timeout'],
    run: leaving('timeout')
  },
  'W5 abort': {
    ...shed,
    about: '100,000 wait, every second one is aborted',
    needs: ['line', 'deep', 'timeout',
      'abort'],
    run: leaving('abort')
  },
  'W6 idle': {
    about: '1,000 idle connections, looked after: CPU time of the process by the second. L2 looks after nothing: it is the floor',
    needs: ['line'],
    base: 'best peer',
    metric: 'cpuMsPerSecond',
    rounds: 5,
    quickRounds: 1,
    everyone: true,
    together: true,
    full: { ms: 6000 },
    quick: { ms: 4000 },
    run: idling,
  },
  'W7 memory': {
    ...still,
    about: 'Bytes on the heap for an idle connection (about 64 are the connection itself), more for one that is lent, ' +
      'and for one who waits (its promise with a `then` included)',
    needs: ['line'],
    base: 'L2',
    metric: 'waiterBytes',
    rounds: 3,
    quickRounds: 1,
    run: memory,
  },
  timers: { ...still, about: 'Timers made for each acquire, 11 callers for 10 connections', needs: ['line'], rounds: 1, run: timers },
  'W8 fairness': {
    about: '40 callers for 10 connections, about 1 ms of work: how long they wait',
    needs: ['line'],
    base: 'L2',
    metric: 'p50ms',
    rounds: 5,
    full: { ms: 1000 },
    quick: { ms: 500 },
    run: fairness,
  },
  cold: {
    ...still,
    about: '100 requests of 5 ms at once on a cold pool of 20, 50 ms to connect: 75 ms are the ideal',
    needs: ['line', 'create'],
    base: 'L2',
    metric: 'ms',
    rounds: 5,
    everyone: true,
    run: cold,
  },
  burst: {
    ...still,
    about: '10 at once with 1 ms of work on one warm connection, 50 ms to connect: until all are served, to ten timers in turn; ' +
      'connects begun, and established',
    needs: ['line', 'create'],
    base: 'L2',
    metric: 'ms',
    rounds: 5,
    everyone: true,
    run: burst,
  },
}

/** A workload's ratio to its base, and to the best peer where we want to be ahead of all of them. */
const pace = (workload, limit, name) => ({
  name: `${name}, to ${workloads[workload].base}`,
  of: [workload],
  limit,
  unit: 'x',
  measure: (w) => w(workload).ratio('ours'),
})
const ahead = (workload, name) => ({
  name: `${name}, to the best peer`,
  of: [workload],
  limit: 1,
  unit: 'x',
  measure: (w) => w(workload).toBestPeer('ours'),
})
const figure = (workload, figure, limit, unit, name) => ({
  name, of: [workload], limit, unit, measure: (w) => w(workload).of('ours', figure),
})

/**
 * What the project promises itself. `measure(result)` gives the figure: `result(workload)` has `ratio(pool)` to the
 * workload's base, `toBestPeer(pool)` and `of(pool, figure)`, all medians.
 */
export const targets = [
  pace('W1 await', 1.3, 'acquire and release'),
  pace('W1 sync', 2.5, 'tryAcquire and release'),
  pace('W2 microtask', 1.75, 'contended, a microtask of work'),
  ahead('W2 microtask', 'contended, a microtask of work'),
  pace('W2 setImmediate', 1.5, 'contended, a setImmediate of work'),
  ahead('W2 setImmediate', 'contended, a setImmediate of work'),
  ...[['W3 1k', 2.3, '1,000'], ['W3 10k', 5, '10,000'], ['W3 100k', 2.2, '100,000'], ['W3 300k', 2, '300,000']]
    .flatMap(([workload, limit, waiters]) =>
      [pace(workload, limit, `${waiters} who wait`), ahead(workload, `${waiters} who wait`)]),
  { ...ahead('W5 timeout', '100,000 wait, half time out: CPU'), limit: 0.4 },
  { ...ahead('W5 abort', '100,000 wait, half are aborted: CPU'), limit: 0.75 },
  {
    name: '1,000 idle connections: CPU, to the best peer, or to the floor where that is at it',
    of: ['W6 idle'],
    limit: 1,
    unit: 'x',
    // A process that does nothing costs what L2 does: a peer below that is luck.
    measure (w) {
      const idle = w('W6 idle')
      return idle.of('ours', idle.workload.metric) / Math.max(idle.of(idle.base, idle.workload.metric),
        idle.of('L2', idle.workload.metric))
    },
  },
  figure('W7 memory', 'idleBytes', 250, ' bytes', 'an idle connection'),
  figure('W7 memory', 'waiterBytes', 300, ' bytes', 'one who waits'),
  // Housekeeping has one now and then.
  figure('timers', 'timersPerAcquire', 0.01, '', 'timers for each acquire'),
  figure('cold', 'timesIdeal', 1.1, 'x', 'cold start, to the ideal'),
  figure('burst', 'timesIdeal', 1.2, 'x', 'burst, to ten timers in turn'),
  figure('burst', 'established', 2, '', 'connections established for a burst'),
]
