// Loops that take all that each core has to give, so that a test which only passes on a quiet machine is found.
import { spawn } from 'node:child_process'
import { availableParallelism } from 'node:os'

// Ends by itself, too, where its parent was killed and could end nothing.
const loop =
  'const parent = process.ppid; for (;;) { const until = Date.now() + 500; while (Date.now() < until); if (process.ppid !== parent) process.exit() }'

const loops = []

/** One for each core, until `stopLoops()` or the end of this process, whatever ends it. */
export function takeAllCores () {
  const { NODE_OPTIONS: _, ...env } = process.env
  for (let core =
    0; core < availableParallelism(); core++) loops.push(spawn(process.execPath, ['-e', loop], { env, stdio: 'ignore' }))
  process.on('exit', stopLoops)
  console.log(`busy: ${loops.length} loops, processes ${loops.map(({ pid }) => pid).join(' and ')}`)
}

export function stopLoops () {
  for (const one of loops.splice(0)) one.kill('SIGKILL')
}
