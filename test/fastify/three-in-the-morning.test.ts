import { readFileSync } from 'node:fs'
import Fastify, { type FastifyInstance } from 'fastify'
import { Registry } from 'prom-client'
import t from 'tap'
import { parse } from 'yaml'
import { fastifyPool } from '../../index.js'
import { storyLevels } from '../../lib/fastify/log/levels.js'
import { FakeConnector } from '../support/fake-connector.js'

// The page for whoever is called at night: it leaves out no line, and its alerts ask for what is there.

const page = readFileSync(new URL('../../docs/three-in-the-morning.md', import.meta.url), 'utf8')

interface Rule {
  readonly alert: string
  readonly expr: string
  readonly for?: string
  readonly labels: Readonly<Record<string, string>>
  readonly annotations: Readonly<Record<string, string>>
}

const [, yaml = ''] = /^```yaml\n([^]*?)^```/m.exec(page) ?? []
const { groups } = parse(yaml) as { groups: ReadonlyArray<{ readonly name: string, readonly rules: readonly Rule[] }> }
const rules = groups.flatMap(({ rules }) => rules)

t.test('each line at warn or above is on the page', async (t) => {
  const serious = Object.entries(storyLevels).filter(([, level]) => level === 'warn' || level === 'error')
  for (const [line] of serious.filter(([line]) => line !== 'pool.leak.taken' && line !== 'pool.error')) {
    t.ok(page.includes(`\`${line}\``), line)
  }
})

t.test('the rules have the form that promtool asks for', async (t) => {
  t.ok(rules.length > 8)
  t.same(groups.map((group) => Object.keys(group)), [['name', 'rules']])
  t.equal(new Set(rules.map(({ alert }) => alert)).size, rules.length, 'each has a name of its own')
  for (const rule of rules) {
    t.same(Object.keys(rule).filter((key) => !['alert', 'expr', 'for', 'labels', 'annotations'].includes(key)), [])
    t.match(rule.alert, /^[A-Z]\w+$/)
    if (rule.for !== undefined) t.match(rule.for, /^\d+[smh]$/)
    const { expr } = rule
    for (const [open, close] of ['()', '{}', '[]'] as const) {
      t.equal(expr.split(open!).length, expr.split(close!).length, `${expr} is balanced`)
    }
    t.match(rule.annotations.summary, /\$labels\.pool/)
    for (const text of Object.values(rule.annotations)) t.equal(text.split('{{').length, text.split('}}').length)
  }
})

t.test('the rules ask for metrics and labels that are there', async (t) => {
  const register = new Registry()
  const app = Fastify() as unknown as FastifyInstance
  t.teardown(() => app.close())
  await app.register(fastifyPool, {
    pools: { db: { connector: new FakeConnector(), max: 1, bulkhead: { key: () => 'one', max: 1 } } },
    prometheus: { register },
    log: false,
  })
  await app.ready()
  const names = new Set((await register.getMetricsAsJSON()).map(({ name }) => name))
  for (const { expr } of rules) {
    const asked = [...expr.matchAll(/\b(?:db_client|fastify_pool)_\w+/g)].map(([name]) => name.replace(/_bucket$/, ''))
    t.ok(asked.length > 0)
    for (const name of asked) t.ok(names.has(name), name)
  }
})
