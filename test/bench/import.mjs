// What importing the package costs an app that has imported Fastify already: called by fastify.mjs, or alone.
//
//   node test/bench/import.mjs [--rounds 15]
import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'

/** In ms. */
const limit = 10

/** A process of its own for each round. @returns the milliseconds of both imports */
function measure (folder) {
  const ours = pathToFileURL(join(folder, 'dist/index.js')).href
  const script = `
    const begun = performance.now()
    await import('fastify')
    const between = performance.now()
    await import(${JSON.stringify(ours)})
    console.log(JSON.stringify([between - begun, performance.now() - between]))`
  return JSON.parse(execFileSync(process.execPath, ['--input-type=module', '-e', script], { cwd: folder }))
}

/** @param folder of the package, with dist. @returns Markdown */
export function importReport (folder, rounds) {
  const times = Array.from({ length: Math.max(15, rounds) }, () => measure(folder))
  const told = (numbers, digits) => {
    const [middle, least, most] = [numbers.length >> 1, 0, -1]
      .map((at) => numbers.toSorted((a, b) => a - b).at(at).toFixed(digits))
    return [`${middle} [${least} to ${most}]`, Number(middle)]
  }
  const [theirs] = told(times.map(([fastify]) => fastify), 1)
  const [ours, middle] = told(times.map(([, ours]) => ours), 1)
  const [ratio] = told(times.map(([fastify, ours]) => ours / fastify), 2)
  const verdict = middle <= limit ? 'met' : `**missed** by ${Math.max(1, Math.round((middle / limit - 1) * 100))} %`
  return [
    `In ${times.length} processes; nothing is compiled ahead, all files are in the system's cache.`,
    '',
    "| target | at most | measured |  | `import 'fastify'` | ratio |",
    '| --- | ---: | ---: | --- | ---: | ---: |',
    `| \`import 'fastify-pool'\` after \`import 'fastify'\`, ms | ${limit} | ${ours} | ${verdict} | ${theirs} | ${ratio} |`,
  ].join('\n')
}

if (process.argv[1] === import.meta.filename) {
  const { values } = parseArgs({ options: { rounds: { type: 'string', default: '15' } } })
  console.log(importReport(fileURLToPath(new URL('../..', import.meta.url)), Number(values.rounds)))
}
