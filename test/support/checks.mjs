// What `npm test` and `npm run check` ask of the code before any test runs: lint, build, types, and whatever
// package.json names `check:...`, side by side. Shows what they say, and fails where one does.
import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { root } from './find.mjs'

const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
const checks = ['lint', 'build', 'typecheck', ...Object.keys(scripts).filter((name) => name.startsWith('check:'))]

const ended = await Promise.all(checks.map((name) => new Promise((resolve) => {
  execFile('npm', ['run', '--silent', name], { cwd: root, maxBuffer: 1e8, shell: process.platform === 'win32' }, (error, stdout, stderr) => {
    if (stdout + stderr !== '') console.log((stdout + stderr).trimEnd())
    if (error) console.log(`FAILED: npm run ${name}`)
    resolve(error === null)
  })
})))
if (ended.includes(false)) process.exitCode = 1
