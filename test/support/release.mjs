// `node test/support/release.mjs v1.2.3 [folder]`: whether that tag may be released. The version of package.json must be
// the tag's, and the newest section of CHANGELOG.md must be of it, with its date. Prints npm's tag for it: `latest`, or
// `next` for a version like 1.2.3-rc.1, which nobody gets who does not ask for it.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { root } from './find.mjs'

const [tag, folder = root] = process.argv.slice(2)
const read = (name) => readFileSync(join(folder, name), 'utf8')

const { version } = JSON.parse(read('package.json'))
const [heading] = /^## .*$/m.exec(read('CHANGELOG.md')) ?? ['no section']
const wrong = tag !== `v${version}`
  ? `the tag is ${tag}, and package.json says ${version}`
  : !new RegExp(`^## ${version.replaceAll('.', '\\.')} \\(\\d{4}-\\d\\d-\\d\\d\\)$`).test(heading)
      ? `CHANGELOG.md begins with "${heading}", which should be "## ${version} (its date as 2026-12-31)"`
      : undefined
if (wrong !== undefined) {
  console.error(`No release: ${wrong}`)
  process.exitCode = 1
} else {
  console.log(version.includes('-') ? 'next' : 'latest')
}
