// What the compiler says of usual mistakes: it names what is wrong.
import t from 'tap'
import { compile, type Chain } from '../docs/compile.js'

const start = `
import Fastify from 'fastify'
import pool, { type PluginOptions, type RoutePools } from 'fastify-pool'
import type { Client } from 'pg'
declare module 'fastify-pool' { interface RequestPools { db: Client } }
const app = Fastify()
`

const mistakes: ReadonlyArray<readonly [what: string, code: string, said: RegExp]> = [
  ['an option of a pool in the map', "await app.register(pool, { pools: { db: { backend: 'mysql', maxx: 5 } } })",
    /'maxx' does not exist .*Did you mean to write 'max'\?/],
  ['an option of the one pool', "await app.register(pool, { backend: 'mysql', maxx: 5 })", /'maxx' does not exist/],
  ['an option within an option', "await app.register(pool, { pools: { db: { backend: 'mysql', lease: { aquire: 'manual' } } } })",
    /'aquire' does not exist .*Did you mean to write 'acquire'\?/],
  ['an option of the plugin', "await app.register(pool, { pols: { db: { backend: 'mysql' } } })", /'pols' does not exist/],
  ['the type of an option', "await app.register(pool, { pools: { db: { backend: 'mysql', min: '1' } } })",
    /Type 'string' is not assignable to type 'number'/],
  ['a backend', "await app.register(pool, { pools: { db: { backend: 'postgresq' } } })", /Did you mean '"postgresql"'\?/],
  ['no backend', "await app.register(pool, { pools: { db: { url: 'x' } } })", /Property 'backend' is missing/],
  ['a backend from a file', "const options = { pools: { db: { backend: 'mysql' } } }\nawait app.register(pool, options)",
    /Types of property 'backend' are incompatible.[^]*Type 'string' is not assignable/],
  ['a call in a hook', "await app.register(pool, { backend: 'postgresql', onConnect: (client) => client.qery('x') })",
    /'qery' does not exist on type 'Client'. Did you mean 'query'/],
  ['a call in wrap', "await app.register(pool, { pools: { db: { backend: 'redis', wrap: (client) => client.nonsense } } })",
    /'nonsense' does not exist on type 'Redis/],
  ['a name in a route', "app.get('/', { config: { pools: ['dc'] } }, async () => 'well')",
    /'"dc"' is not assignable to type '"db"'/],
  ['a name with a policy', "app.get('/', { config: { pools: { dc: true } satisfies RoutePools } }, async () => 'well')",
    /'dc' does not exist/],
  ['a name with a policy, in a typed route', "app.get<{ Params: {} }>('/', { config: { pools: { dc: true } } }, async () => 'well')",
    /'dc' does not exist/],
  ['a policy', "app.get<{ Params: {} }>('/', { config: { pools: { db: { aquire: 'manual' } } } }, async () => 'well')",
    /'aquire' does not exist/],
  ['what a policy may be', "app.get('/', { config: { pools: { db: { acquire: 'manuel' } } } }, async () => 'well')", /manuel/],
  ['a call of the backend', "app.pools.get('db').backend.subscribe('orders')", /'subscribe' does not exist/],
]

const right: ReadonlyArray<readonly [what: string, code: string]> = [
  ['options from a file, with satisfies', `
    const options = { pools: { db: { backend: 'mysql' } } } satisfies PluginOptions
    await app.register(pool, options)`],
  ['the backend of a pool', "await app.pools.get('db').backend.listen('orders', (payload) => payload.length)"],
  ['the shared clients', "await app.redis.set('a', app.mongo.client.options.appName ?? '')"],
]

const chainOf = (name: string, code: string): Chain => ({ name, blocks: [], code: `${start}${code}\n`, runs: false })
const chains = new Map([...mistakes, ...right].map(([what, code], at) => [what, chainOf(`mistake-${at}`, code)]))
const told = compile([...chains.values()])

for (const [what, , said] of mistakes) {
  t.test(`a mistake: ${what}`, async (t) => {
    const messages = told.get(chains.get(what)!)!
    t.equal(messages.length, 1, messages.join('\n'))
    t.match(messages[0], said)
  })
}

for (const [what] of right) t.test(what, async (t) => { t.same(told.get(chains.get(what)!), []) })
