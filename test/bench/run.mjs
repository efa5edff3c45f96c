// `npm run bench`: our pool beside the limits and every peer, in one run.
//
//   node test/bench/run.mjs [--rounds 15] [--only W1,W3] [--quick] [--write]
//
// Prints Markdown; --write puts it into RESULTS.md. --only takes the beginnings of workloads' names; --quick is 3 short
// rounds, to see the order of magnitude. The built package is measured: build first. BENCH_OURS names the folder of
// another one (with package.json and dist), to compare builds.
//
// One process for each workload, round and pool, so that no pool's inline caches, heap or timers touch another's; the
// pools of a round take turns in an order that rotates. A ratio is taken within its round, where the machine was as
// busy for both; the median of the rounds is told with its range. The limits and ours run in each round, the peers in
// every third, unless a target is about them.
import { fork } from 'node:child_process'
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { cpus, loadavg } from 'node:os'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { copyOurs, installPeers, peerVersions, pools } from './pools.mjs'
import { targets, workloads } from './workloads.mjs'

const { values: args, positionals: [workload, pool, options] } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: 'string' },
    only: { type: 'string' },
    quick: { type: 'boolean', default: false },
    write: { type: 'boolean', default: false },
    // The process that measures: `--one <workload> <pool> <options>`.
    one: { type: 'boolean', default: false },
  },
})
async function measureHere () {
  const make = await pools[pool].load()
  const figures = await workloads[workload].run(make, JSON.parse(options))
  process.send(figures, () => process.exit(0))
}

/** What a process of its own measures. A failure ends the run. */
function measure (workload, pool) {
  const limit = 120
  const options = workloads[workload][args.quick ? 'quick' : 'full']
  return new Promise((resolve, reject) => {
    const child = fork(fileURLToPath(import.meta.url), ['--one', workload, pool, JSON.stringify(options)], {
      execArgv: ['--expose-gc', '--max-old-space-size=8192'],
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    })
    let figures
    const timer = setTimeout(() => child.kill('SIGKILL'), limit * 1000)
    child.on('message', (message) => { figures = message })
    child.on('exit', (code, signal) => {
      clearTimeout(timer)
      if (figures !== undefined) resolve(figures)
      else reject(new Error(`${workload}, ${pool}: ${signal === null ? `exit code ${code}` : `not done within ${limit} s`}`))
    })
  })
}

/** Its figures by pool and round. A peer that did not run in a round has a hole there. */
async function runWorkload (name, rounds) {
  const { needs, everyone = false, together = false, ...workload } = workloads[name]
  const most = Math.min(workload.rounds ?? Infinity, (args.quick && workload.quickRounds) || Infinity)
  const list = Object.keys(pools).filter((pool) => needs.every((need) => pools[pool].lacks[need] === undefined))
  const figures = Object.fromEntries(list.map((pool) => [pool, []]))
  for (let round = 0; round < Math.min(rounds, most); round++) {
    const turn = round % list.length
    const present =
      [...list.slice(turn),
        ...list.slice(0, turn)].filter((pool) => everyone || round % 3 === 0 || pools[pool].kind !== 'peer')
    const one = async (pool) => { figures[pool][round] = await measure(name, pool) }
    if (together) await Promise.all(present.map(one))
    else for (const pool of present) await one(pool)
  }
  return figures
}

function median (numbers) {
  const sorted = numbers.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

/** A workload's figures, as the tables and targets ask for them. */
class Result {
  constructor (name, figures) {
    this.workload = workloads[name]
    this.figures = figures
    this.pools = Object.keys(figures)
    const { base, metric } = this.workload
    this.base = base === 'best peer' ? this.#best(metric) : base
  }

  get rounds () {
    return this.figures.ours.length
  }

  get names () {
    return Object.keys(this.figures.ours[0])
  }

  of (pool, figure) {
    return median(this.figures[pool].flatMap((figures) => figures[figure]))
  }

  /** In each round in which both ran. */
  ratios (pool, base = this.base) {
    const { metric } = this.workload
    // `flatMap` jumps over holes.
    return this.figures[pool].flatMap((figures, round) => {
      const beside = this.figures[base]?.[round]
      return beside === undefined ? [] : [figures[metric] / beside[metric]]
    })
  }

  ratio (pool) {
    return median(this.ratios(pool))
  }

  toBestPeer (pool) {
    return median(this.ratios(pool, this.#best(this.workload.metric)))
  }

  #best (metric) {
    const peers = this.pools.filter((pool) => pools[pool].kind === 'peer')
    return peers.toSorted((a, b) => this.of(a, metric) - this.of(b, metric))[0]
  }
}

function written (number) {
  if (Number.isInteger(number)) return number.toLocaleString('en')
  if (Math.abs(number) >= 100) return Math.round(number).toLocaleString('en')
  return number.toFixed(Math.abs(number) < 0.1 && number !== 0 ? 4 : 2)
}

const row = (cells) => `| ${cells.join(' | ')} |`

function table (name, result) {
  const { workload, base, names } = result
  const told = workload.base !== undefined
  const lines = [
    `### ${name}`,
    '',
    `${workload.about}; ${result.rounds} ${result.rounds === 1 ? 'round' : 'rounds'}.`,
    '',
    row(['pool', ...names, ...told ? [`${workload.metric}, to ${base}`] : []]),
    row(['---', ...names.map(() => '---:'), ...told ? ['---:'] : []]),
  ]
  for (const pool of result.pools) {
    const cells = names.map((figure) => written(result.of(pool, figure)))
    if (told) {
      const ratios = result.ratios(pool)
      cells.push(pool === base
        ? '1'
        : `${median(ratios).toFixed(2)} [${Math.min(...ratios).toFixed(2)} to ${Math.max(...ratios).toFixed(2)}]`)
    }
    lines.push(row([pool === 'ours' ? '**ours**' : pool, ...cells]))
  }
  const missing = new Map()
  for (const [pool, { kind, lacks }] of Object.entries(pools)) {
    const why = workload.needs.map((need) => lacks[need]).find((reason) => reason !== undefined)
    if (why !== undefined && kind !== 'limit') missing.set(why, [...missing.get(why) ?? [], pool])
  }
  if (missing.size > 0) {
    lines.push('',
    `Without ${[...missing].map(([why, names]) => `${names.join(', ')} (${why})`).join('; ')}.`)
  }
  return lines.join('\n')
}

function targetsTable (results) {
  const lines = [row(['target', 'at most', 'measured', '']), row(['---', '---:', '---:', '---'])]
  for (const { name, of, limit, unit, measure } of targets) {
    if (of.some((workload) => !results.has(workload))) continue
    const measured = measure((workload) => results.get(workload))
    const verdict = measured <= limit
      ? 'met'
      : `**missed** by ${Math.max(1, Math.round((measured / limit - 1) * 100))} %`
    lines.push(row([name, `${limit}${unit}`, `${written(measured)}${unit}`, verdict]))
  }
  return lines.join('\n')
}

async function main () {
  const rounds = Number(args.rounds ?? (args.quick ? 3 : 15))
  if (!Number.isInteger(rounds) ||
    rounds < 1) throw new Error(`--rounds ${args.rounds}: a number of rounds, at least 1`)
  const wanted = (args.only ?? '').toLowerCase().split(',')
  const names = Object.keys(workloads).filter((name) => wanted.some((start) => name.toLowerCase().startsWith(start)))
  if (args.write &&
    args.only !== undefined) throw new Error('--write needs all workloads: a table with holes would be read as one without')
  if (names.length === 0) throw new Error(`--only ${args.only}: there are ${Object.keys(workloads).join(', ')}`)
  const load = loadavg().map((number) => number.toFixed(1)).join(', ')
  const begun = performance.now()
  installPeers()

  const copy = process.env.BENCH_OURS === undefined ? copyOurs() : undefined
  process.env.BENCH_OURS ??= copy
  const results = new Map()
  try {
    for (const name of names) {
      const since = performance.now()
      results.set(name, new Result(name, await runWorkload(name, rounds)))
      process.stderr.write(`${name}: ${((performance.now() - since) / 1000).toFixed(1)} s\n`)
    }
  } finally {
    if (copy !== undefined) rmSync(copy, { recursive: true })
  }

  const [{ model }] = cpus()
  const limits = Object.entries(pools).filter(([, { kind }]) => kind === 'limit')
    .map(([name, { about }]) => `- ${name} is ${about}.`)
  const report = [
    '# What the pool costs, beside its limits and its peers',
    '',
    `\`npm run bench\`${args.quick ? ' with `--quick`' : ''}, ${new Date().toISOString().slice(0, 10)}: Node ${process.version}, ` +
      `${cpus().length} x ${model}, ${process.platform} ${process.arch}, load average at the start ${load}; ` +
      `${rounds} rounds in ${((performance.now() - begun) / 60000).toFixed(1)} minutes.`,
    '',
    ...limits,
    `- Ours is ${pools.ours.about}.`,
    '',
    'Every figure is the median of its rounds; a ratio is taken within each round, then its median is told, [least to most]. Peers run in every',
    'third round where no target is about them, and without an acquire timeout but in W5: their best. Trust the ratios, not the times.',
    '',
    `Peers: ${peerVersions}.`,
    '',
    '## Targets',
    '',
    targetsTable(results),
    '',
    '## Workloads',
    '',
    [...results].map(([name, result]) => table(name, result)).join('\n\n'),
    '',
  ].join('\n')
  if (!args.write) return process.stdout.write(`${report}\n`)

  // What people wrote below the line is theirs.
  const file = new URL('RESULTS.md', import.meta.url)
  const line = '<!-- `npm run bench -- --write` keeps what is below this line -->'
  const below = existsSync(file) ? readFileSync(file, 'utf8').split(line)[1] ?? '\n' : '\n'
  writeFileSync(file, `${report}\n${line}${below}`)
}

if (args.one) await measureHere()
else await main()
