// docs/options.md: made of the schemas (names, values, defaults) and of the comments in types/ (what they mean).
// `npm run docs:options` writes it, and a test says whether it is as it would be written now.
import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type * as Ts from 'typescript'
import {
  balanceProperties, pluginProperties, policyProperties, poolProperties, targetProperties, tenantProperties,
} from '../../lib/fastify/options.js'
import { addressProperties, engineProperties, hookProperties } from '../../lib/pool/options.js'
import type { Properties, Schema } from '../../lib/pool/schema.js'
import { root } from './pages.js'

const ts = createRequire(import.meta.url)('typescript') as typeof Ts

/** What the interfaces of types/ say of their members: by interface, by member. */
const said = new Map<string, Map<string, string>>()
for (const file of ['types/options.ts', 'types/plugin.ts', 'types/connector.ts', 'types/pool.ts']) {
  const source = ts.createSourceFile(file, readFileSync(join(root, file), 'utf8'), ts.ScriptTarget.Latest, true)
  const visit = (node: Ts.Node, owner: string): void => {
    const named = (ts.isInterfaceDeclaration(node) || ts.isTypeAliasDeclaration(node)) ? node.name.text : owner
    if ((ts.isPropertySignature(node) || ts.isMethodSignature(node)) && ts.isIdentifier(node.name)) {
      // As it is written: to the compiler, an '@' within a sentence begins a tag.
      const [comment] = ts.getJSDocCommentsAndTags(node)
      const text = comment?.getText().replace(/\*\/$/, '').replace(/^\/\*\*|^\s*\*/gm, '').split(/^\s*@(?:throws|param)/m)[0] ?? ''
      const members = said.get(named) ?? new Map<string, string>()
      if (text.trim() !== '' && !members.has(node.name.text)) members.set(node.name.text, text.replace(/\s+/g, ' ').trim())
      said.set(named, members)
    }
    ts.forEachChild(node, (child) => visit(child, named))
  }
  visit(source, '')
}

/** What an option is given, in a few words. */
function valueOf (schema: Schema): string {
  const { type, enum: values, minimum, maximum, anyOf, title, properties } = schema
  if (anyOf !== undefined) {
    return title ?? `${anyOf[0].type === 'boolean' ? '`true`, `false`' : '`false`'} or ${valueOf(anyOf[1])}`
  }
  if (values !== undefined) return values.map((value) => `\`${show(value)}\``).join(', ')
  if (title !== undefined) return title
  if (properties !== undefined) return `an object: ${Object.keys(properties).map((name) => `\`${name}\``).join(', ')}`
  if (type === 'number') return `ms, at least ${minimum}`
  if (type === 'integer') return maximum === undefined ? `an integer, at least ${minimum}` : `${minimum} to ${maximum}`
  return { boolean: '`true` or `false`', function: 'a function', array: 'a list' }[type ?? ''] ?? 'an object'
}

function show (value: unknown): string {
  return typeof value === 'string' ? `'${value}'` : JSON.stringify(value).replace(/"(\w+)":/g, ' $1: ').replace(/ ?}$/, ' }')
}

const saysDefault = /\s*\bDefault:? (`[^`]*`|[\d.]+\b|[^;]*?)\.(?= [A-Z]|$)/

/** What the other columns say is left out. */
const shortened = (text: string): string => text.replace(saysDefault, '').replace(/ At least 1\.|, in ms(?=[.,:])/g, '')

/** The default of the schema; of one without, what the comment says. */
function defaultOf (schema: Schema, text: string): string {
  const { default: own } = schema
  const told = saysDefault.exec(text)?.[1]
  if (own === undefined) return told?.replace(/^([\d.]+|true|false)$/, '`$1`') ?? ''
  if (typeof own === 'object' && Object.keys(own as object).length === 0) return told ?? ''
  return `\`${show(own)}\``
}

interface Section {
  readonly title: string
  readonly says: string
  /** The interfaces whose comments say what the options mean. */
  readonly of: readonly string[]
  readonly properties: Properties
}

const pick = (properties: Properties, ...names: string[]): Properties =>
  Object.fromEntries(names.map((name) => [name, properties[name]!]))
const omit = (properties: Properties, ...names: string[]): Properties =>
  Object.fromEntries(Object.entries(properties).filter(([name]) => !names.includes(name)))
/** The members of an option that is an object. */
function inside (schema: Schema): Properties {
  return schema.properties ?? schema.anyOf![1].properties!
}

const { backoff, circuit, ...numbers } = omit(engineProperties, ...Object.keys(addressProperties))
const timing = Object.keys(numbers).filter((name) => /Timeout$/.test(name) && name !== 'idleTimeout')
const common = ['min', 'max', 'startup', 'acquireTimeout', 'holdTimeout', 'commitTimeout', 'reset']
const rest = Object.keys(numbers).filter((name) => !common.includes(name) && !timing.includes(name))
const poolTypes = ['EngineNumbers', 'Address', 'PoolOptions', 'BackendPoolOptions', 'CommonPoolOptions', 'DriverOption', 'RequestOptions', 'PoolHooks']

/** Its members have a page of their own: docs/observing.md. */
const log = {
  ...pluginProperties.log,
  title: '`false`, or a level by the name of the [event](observing.md#which-lines-are-there)',
}

const sections: readonly Section[] = [
  {
    title: 'The plugin',
    says: 'Beside `pools`, or beside the options of the one pool and its `name` (default `\'db\'`).',
    of: ['PluginOptions', 'CommonPluginOptions'],
    properties: { pools: { type: 'object', title: 'an object: the options of each pool, by its name' }, ...pluginProperties, log },
  },
  {
    title: 'A pool: where the database is',
    says: 'One of `backend`, `connector` and `targets`, and an address.',
    of: poolTypes,
    properties: {
      ...pick(poolProperties, 'backend', 'connector', 'targets'), ...addressProperties, ...pick(poolProperties, 'driver', 'appName'),
    },
  },
  { title: 'A pool: what most apps set', says: '', of: poolTypes, properties: pick(numbers, ...common) },
  {
    title: 'A pool: its other deadlines',
    says: 'Of one step each; `acquireTimeout` holds for all steps of an acquire together.',
    of: poolTypes,
    properties: pick(numbers, ...timing.filter((name) => !common.includes(name))),
  },
  {
    title: 'A pool: connections and callers',
    says: '',
    of: poolTypes,
    properties: { ...pick(numbers, ...rest), backoff: backoff!, circuit: circuit! },
  },
  { title: '`backoff`', says: 'Between creates that fail.', of: ['Backoff'], properties: inside(engineProperties.backoff) },
  {
    title: '`circuit`',
    says: 'The circuit breaker of creates: [outages](overload-and-outages.md#what-happens-when-the-database-goes-down).',
    of: ['CircuitOptions'],
    properties: inside(engineProperties.circuit),
  },
  {
    title: 'A pool: hooks',
    says: 'Functions of the app: `(connection, info) => ...`. They may be async, but for `wrap`.',
    of: ['PoolHooks'],
    properties: hookProperties,
  },
  {
    title: 'A pool: its requests',
    says: '',
    of: ['RequestOptions'],
    properties: pick(poolProperties, 'lease', 'bulkhead', 'sticky', 'stickyFor'),
  },
  {
    title: '`lease`, and `config.pools` of a route',
    says: 'A policy. What a route leaves out its pool says, then the plugin: ' +
      '[which to choose](acquire-and-release.md).',
    of: ['Policy'],
    properties: policyProperties,
  },
  {
    title: '`transaction` of a policy',
    says: '`true`, or an object: [transactions](transactions.md).',
    of: ['RouteTransaction', 'TransactionOptions'],
    properties: inside(policyProperties.transaction),
  },
  { title: '`bulkhead`', says: 'Fair shares of one pool.', of: ['BulkheadOptions'], properties: inside(poolProperties.bulkhead) },
  { title: '`sticky`', says: 'Exactly one of its members.', of: ['StickyOptions'], properties: inside(poolProperties.sticky) },
  {
    title: 'A pool over several servers',
    says: 'Beside `targets`.',
    of: ['BalanceOptions', 'RequestOptions', 'CommonPoolOptions'],
    properties: omit(balanceProperties, 'sticky', 'stickyFor'),
  },
  {
    title: '`targets`',
    says: 'Each has an address of its own; what it leaves out is the pool\'s.',
    of: ['Target', 'DriverOption', 'Address'],
    properties: { ...targetProperties, connector: poolProperties.connector },
  },
  {
    title: 'A pool per tenant',
    says: 'See [a database per tenant](several-databases.md#a-database-per-tenant).',
    of: ['TenantRules'],
    properties: tenantProperties,
  },
  {
    title: '`healthRoutes`', says: 'See [health](health.md).', of: ['HealthRoutes'], properties: inside(pluginProperties.healthRoutes),
  },
  { title: '`otel`', says: 'See [metrics](metrics.md).', of: ['OtelOptions'], properties: inside(pluginProperties.otel) },
  { title: '`prometheus`', says: 'See [metrics](metrics.md).', of: ['PrometheusOptions'], properties: inside(pluginProperties.prometheus) },
]

function tableOf ({ title, says, of, properties }: Section): string {
  const rows = Object.entries(properties).map(([name, schema]) => {
    const text = of.map((owner) => said.get(owner)?.get(name)).find((one) => one !== undefined)
    if (text === undefined) throw new Error(`${title}: types/ says nothing of ${name}`)
    const cells = [`\`${name}\``, valueOf(schema), defaultOf(schema, text), shortened(text)]
    return `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`
  })
  const head = ['| option | value | default | |', '| --- | --- | --- | --- |']
  return [`## ${title}`, '', ...says === '' ? [] : [says, ''], ...head, ...rows].join('\n')
}

const head = `# Which options are there?

Made by \`npm run docs:options\` of the schemas (\`lib/fastify/options.ts\`, \`lib/pool/options.ts\`) and of the comments
in \`types/\`: change those.

Times are in milliseconds, up to 2147483647 (25 days). 0 turns an option off only where its line says so. Options are
checked at \`register\`, those of calls (\`acquire\`, \`use\`, \`transaction\`, \`evict\`, \`resize\`, \`close\`) at the call. A
name that is not known is an error that names it. \`undefined\` is as if the option were absent, but for \`url\`.
`

/** Every option has a row: what the sections leave out is an error. */
export function optionsPage (): string {
  const listed = new Set(sections.flatMap(({ properties }) => Object.keys(properties)))
  for (const name of [...Object.keys(pluginProperties), ...Object.keys(poolProperties)]) {
    if (!listed.has(name)) throw new Error(`${name} is in no section`)
  }
  return [head, ...sections.map((section) => `${tableOf(section)}\n`)].join('\n')
}
