// `node test/support/release.mjs v1.2.3`: whether that tag may be released. The version of package.json must
// be the tag's, and the newest section of CHANGELOG.md must be of it, with its date. Prints npm's tag for it: `latest`,
// or `next` for a version like 1.2.3-rc.1, which nobody gets who does not ask for it.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { root } from './find.mjs'

/**
 * @returns npm's tag for it
 * @throws with the reason why it is not released
 */
export function tagFor (tag, folder = root) {
  const read = (name) => readFileSync(join(folder, name), 'utf8')
  const { version } = JSON.parse(read('package.json'))
  if (tag !== `v${version}`) throw new Error(`No release: the tag is ${tag}, and package.json says ${version}`)
  const [heading] = /^## .*$/m.exec(read('CHANGELOG.md')) ?? ['no section']
  const [, of] = /^## (\S+) \(\d{4}-\d\d-\d\d\)$/.exec(heading) ?? []
  if (of === version) return version.includes('-') ? 'next' : 'latest'
  throw new Error(`No release: CHANGELOG.md begins with "${heading}", not with "## ${version} (2026-12-31)", its date`)
}

if (process.argv[1] === import.meta.filename) console.log(tagFor(process.argv[2]))
