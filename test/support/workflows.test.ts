// What of .github can be checked without GitHub: that its files can be read, what they ask for, and what they name.
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { parse } from 'yaml'
import { root } from './find.mjs'

const { tagFor } = await import('./release.mjs' as string) as { tagFor (tag: string, folder: string): string }

interface Step { readonly uses?: string, readonly run?: string, readonly with?: Record<string, unknown> }
interface Job {
  readonly 'runs-on': string
  readonly 'timeout-minutes': number
  readonly permissions?: Record<string, string>
  readonly steps: readonly Step[]
}
interface Workflow { readonly on: object, readonly permissions: object, readonly jobs: Record<string, Job> }

const github = join(root, '.github')
const text = (name: string): string => readFileSync(join(github, name), 'utf8')
const workflows = readdirSync(join(github, 'workflows')).map((name) => `workflows/${name}`)
const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { scripts: object }

t.test('each workflow can be read, ends, and asks for no more than reading', async (t) => {
  t.ok(workflows.length >= 3)
  for (const name of workflows) {
    const { on, permissions, jobs } = parse(text(name), { strict: true }) as Workflow
    t.ok(Object.keys(on).length > 0, name)
    t.same(permissions, { contents: 'read' }, name)
    for (const [job, { 'runs-on': machine, 'timeout-minutes': minutes, steps }] of Object.entries(jobs)) {
      t.match(machine, /^ubuntu-/, `${name}: ${job}`)
      t.ok(minutes > 0, `${name}: ${job} has a deadline`)
      for (const step of steps) t.ok((step.uses === undefined) !== (step.run === undefined), `${name}: ${job}`)
    }
  }
})

t.test('what workflows run is there', async (t) => {
  for (const name of workflows) {
    const commands = text(name).replaceAll(/\$\{\{ matrix\.lane \}\}/g, 'newest')
    for (const [, script = ''] of commands.matchAll(/npm run (\S+)/g)) t.ok(script in scripts, `${name}: ${script}`)
    for (const [, file = ''] of commands.matchAll(/(?:node |: )((?:test|\.ci)\/\S+)/g)) {
      t.doesNotThrow(() => readFileSync(join(root, file)), `${name}: ${file}`)
    }
  }
})

t.test('no file of the repository names a registry, or an address of this repository', async (t) => {
  const files = [...workflows.map((name) => `.github/${name}`), '.github/PULL_REQUEST_TEMPLATE.md', '.ci/run', '.npmrc',
    'package.json', 'README.md', 'SECURITY.md', 'CONTRIBUTING.md', 'CHANGELOG.md']
  for (const file of files) {
    const found = readFileSync(join(root, file), 'utf8')
    t.notMatch(found, /registry[-.]url|registry\.[a-z]+\.|npm_?token|NODE_AUTH/i, file)
    t.notMatch(found, /github\.com\/[^/\s]*\/fastify-pool|@[\w-]+\.(com|org|dev|io)\b/, file)
  }
})

t.test('a release has provenance, and no job may do more than it must', async (t) => {
  const { on, jobs } = parse(text('workflows/release.yml')) as Workflow
  t.same(on, { push: { tags: ['v*'] } })
  t.same(Object.keys(jobs), ['test', 'publish'])
  const { test, publish } = jobs as { test: Job, publish: Job & { needs: string, environment: string } }
  t.equal(test.permissions, undefined)
  t.same([publish.permissions, publish.needs, publish.environment],
    [{ contents: 'read', 'id-token': 'write' }, 'test', 'npm'])
  for (const { uses, with: given } of [...test.steps, ...publish.steps]) {
    if (uses === undefined) continue
    t.match(uses, /@[0-9a-f]{40}$/, 'a commit, which nobody can move')
    if (uses.startsWith('actions/checkout@')) t.equal(given?.['persist-credentials'], false)
  }
  const commands = publish.steps.map(({ run }) => run ?? '').join('\n')
  t.match(commands, /^npm ci --ignore-scripts /m)
  t.match(commands, /^npm publish --provenance /m)
  t.ok(test.steps.some(({ run }) => run === '.ci/run'), 'all lanes')
})

t.test('a tag is released where package.json and the changelog say the same', async (t) => {
  const at = mkdtempSync(join(tmpdir(), 'fastify-pool-release-'))
  t.teardown(() => { rmSync(at, { recursive: true }) })
  const release = (tag: string, version: string, heading: string): string => {
    writeFileSync(join(at, 'package.json'), JSON.stringify({ version }))
    writeFileSync(join(at, 'CHANGELOG.md'), `# Changelog\n\n${heading}\n\n- It is new.\n\n## 0.0.1 (2020-01-01)\n`)
    return tagFor(tag, at)
  }
  t.equal(release('v1.2.3', '1.2.3', '## 1.2.3 (2027-01-31)'), 'latest')
  t.equal(release('v1.2.3-rc.1', '1.2.3-rc.1', '## 1.2.3-rc.1 (2027-01-31)'), 'next')
  for (const [tag, version, heading, message] of [
    ['v1.2.4', '1.2.3', '## 1.2.3 (2027-01-31)', /the tag is v1\.2\.4, and package\.json says 1\.2\.3/],
    ['1.2.3', '1.2.3', '## 1.2.3 (2027-01-31)', /the tag is 1\.2\.3/],
    ['v1.2.3', '1.2.3', '## 1.2.3 (unreleased)', /begins with "## 1\.2\.3 \(unreleased\)"/],
    ['v1.2.3', '1.2.3', '## 1.2.4 (2027-01-31)', /begins with/],
  ] as const) {
    t.throws(() => release(tag, version, heading), { message })
  }
})

t.test('issue forms can be read, and have what GitHub asks of them', async (t) => {
  interface Form {
    readonly name: string
    readonly description: string
    readonly body: ReadonlyArray<{ type: string, id?: string, attributes: Record<string, string> }>
  }
  const forms = readdirSync(join(github, 'ISSUE_TEMPLATE')).filter((name) => name !== 'config.yml')
  t.ok(forms.length >= 2)
  for (const file of forms) {
    const { name, description, body } = parse(text(`ISSUE_TEMPLATE/${file}`), { strict: true }) as Form
    t.ok(name.length > 0 && description.length > 0, file)
    const ids = body.filter(({ type }) => type !== 'markdown').map(({ id }) => id)
    t.equal(new Set(ids).size, ids.length, `${file}: each field has an id of its own`)
    for (const { type, id, attributes } of body) {
      t.ok(['markdown', 'textarea', 'input', 'dropdown', 'checkboxes'].includes(type), `${file}: ${type}`)
      t.ok(type === 'markdown' ? attributes.value : id && attributes.label, `${file}: ${id}`)
    }
  }
  t.type((parse(text('ISSUE_TEMPLATE/config.yml')) as Record<string, unknown>).blank_issues_enabled, 'boolean')
})
