// The tarball itself: what is in it, how large it is, and what publint and attw say of it.
import { existsSync, readFileSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'

/** In bytes. */
const limit = 260_000

export default async ({ root, tarball, folder, install, run, check }) => {
  const at = folder('tools')
  const unpacked = folder('unpacked')
  const { code, stdout, stderr } = await run('tar', ['-xzf', tarball, '-C', unpacked])
  check(code === 0, 'unpacks', stdout + stderr)
  const home = join(unpacked, 'package')
  const files = (await run('find', ['.', '-type', 'f'], { cwd: home })).stdout.trim().split('\n').sort()

  const { size } = statSync(tarball)
  check(size < limit, `is under ${limit / 1000} kB packed: ${(size / 1000).toFixed(1)} kB`)

  for (const document of ['README.md', 'CHANGELOG.md']) {
    const broken = linksOf(readFileSync(join(home, document), 'utf8'))
      .filter((link) => !leads(home, document, link) && !isOfRepository(root, document, link))
    check(broken.length === 0, `${document}: every link leads to a file of the package, or of the repository`,
      broken.join('\n'))
  }

  const dangling = files.filter((file) => /\.[cm]?js$/.test(file)).filter((file) => !hasItsMap(join(home, file)))
  check(dangling.length === 0, 'every source map that a file names is there, with its sources', dangling.join('\n'))
  const sources = files.filter((file) => /^\.\/(index|lib|types)\b.*\.ts$/.test(file))
  check(sources.length === 0, 'has no sources beside its declarations, which node10 would compile', sources.join('\n'))

  await install(at, ['publint', '@arethetypeswrong/cli'])
  const bin = (name) => join(at, 'node_modules/.bin', name)
  const attw = await run(bin('attw'), [tarball, '--profile', 'esm-only', '--no-color', '--no-emoji'])
  check(attw.code === 0, 'attw --profile esm-only finds nothing', attw.stdout + attw.stderr)
  const lint = await run(bin('publint'), ['run', tarball, '--strict'])
  const told = /suggestion|warning|error/i.test(lint.stdout)
  check(lint.code === 0 && !told, 'publint --strict finds nothing', lint.stdout + lint.stderr)
}

/** Where a Markdown text links to; links within itself start with '#'. Code is left out. */
function linksOf (text) {
  const prose = text.replace(/^```[\s\S]*?^```/gm, '').replace(/`[^`\n]*`/g, (code) => 'x'.repeat(code.length))
  return [...prose.matchAll(/\]\(([^)\s]+)\)/g)].map(([, link]) => link)
}

function leads (home, document, link) {
  if (link.startsWith('#')) return headings(readFileSync(join(home, document), 'utf8')).includes(link.slice(1))
  // Without a known repository there is no address of ours; others may be linked to.
  if (/^https?:/.test(link)) return !link.includes('fastify-pool')
  return existsSync(join(home, dirname(document), link.replace(/#.*/, '')))
}

/** The pages of docs/, and what is for those who change the code, are not in the package: the README says so. */
function isOfRepository (root, document, link) {
  return /^(docs\/|(ARCHITECTURE|CONTRIBUTING|SECURITY)\.md)/.test(link) && leads(root, document, link)
}

/** The anchors of a text's headings, as the usual renderers make them. */
function headings (text) {
  return [...text.replace(/^```[\s\S]*?^```/gm, '').matchAll(/^#+ (.*)$/gm)]
    .map(([, title]) => title.toLowerCase().replace(/[^\p{L}\p{N} _-]/gu, '').replaceAll(' ', '-'))
}

function hasItsMap (file) {
  const name = /\/\/# sourceMappingURL=(\S+)\s*$/.exec(readFileSync(file, 'utf8'))?.[1]
  if (name === undefined || name.startsWith('data:')) return true
  const path = join(dirname(file), name)
  if (!existsSync(path)) return false
  const { sources, sourcesContent } = JSON.parse(readFileSync(path, 'utf8'))
  return sources.every((source, i) => sourcesContent?.[i] != null || existsSync(join(dirname(path), source)))
}
