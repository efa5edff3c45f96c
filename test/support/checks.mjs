// What `npm test` asks of the code before any test runs: lint, build, types and floors, side by side. Shows what they
// say, and fails where one does.
import { execFile } from 'node:child_process'
import { root } from './find.mjs'

const checks = ['lint', 'build', 'typecheck', 'check:floors', 'check:rooms']

const ended = await Promise.all(checks.map((name) => new Promise((resolve) => {
  execFile('npm', ['run', '--silent', name], { cwd: root, maxBuffer: 1e8, shell: process.platform === 'win32' }, (error, stdout, stderr) => {
    if (stdout + stderr !== '') console.log((stdout + stderr).trimEnd())
    if (error) console.log(`FAILED: npm run ${name}`)
    resolve(error === null)
  })
})))
if (ended.includes(false)) process.exitCode = 1
