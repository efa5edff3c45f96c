import { readFileSync } from 'node:fs'
import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import t from 'tap'

// The apps are moved, and pass their own tests, in test/consumers/migration.mjs. Here: the guide shows their diffs.

const apps = fileURLToPath(new URL('../consumers/migration/', import.meta.url))
const guide = readFileSync(new URL('../../docs/migration.md', import.meta.url), 'utf8')

function diffOf (before: string, after: string): string {
  let lines = ''
  try {
    execFileSync('diff', ['-U', '1', before, after], { cwd: apps, encoding: 'utf8' })
  } catch (error) {
    // It ends with 1 where there are differences.
    lines = (error as { stdout: string }).stdout
  }
  return lines.split('\n').slice(2).filter((line) => !line.startsWith('@@')).join('\n').trimEnd()
}

const shown = [...guide.matchAll(/<!-- (\S+) (\S+) -->\n```diff\n([\s\S]*?)\n```/g)]

t.test('the guide has the diff of each app that is moved', async (t) => {
  t.equal(shown.length, 7)
  for (const [, before, after, text] of shown) t.equal(text, diffOf(before!, after!), `${before} to ${after}`)
})
