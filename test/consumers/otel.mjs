// OpenTelemetry's instrumentations of pg, mysql2, ioredis and mongodb: a span for each command that a request sends,
// set up before a CommonJS app (`--require`) and before an ESM app (`--import`, with the loader hook).
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'

const instrumentations =
  { pg: 'PgInstrumentation', mysql2: 'MySQL2Instrumentation', ioredis: 'IORedisInstrumentation', mongodb: 'MongoDBInstrumentation' }
const names = Object.keys(instrumentations)
const commands = 5

const setUp = (load) => `
${load('{ NodeTracerProvider }', '@opentelemetry/sdk-trace-node')}
${load('{ InMemorySpanExporter, SimpleSpanProcessor }', '@opentelemetry/sdk-trace-base')}
${load('{ registerInstrumentations }', '@opentelemetry/instrumentation')}
${names.map((name) => load(`{ ${instrumentations[name]} }`, `@opentelemetry/instrumentation-${name}`)).join('\n')}
globalThis.exporter = new InMemorySpanExporter()
new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(globalThis.exporter)] }).register()
registerInstrumentations({ instrumentations: [${names.map((name) => `new ${instrumentations[name]}({ requireParentSpan: false })`).join(', ')}] })
`

/**
 * Sends each command in a request of its own, alone and side by side, and prints how many spans each instrumentation
 * has of them.
 */
const app = (load) => `
${load('Fastify', 'fastify', 'default')}
${load('pool', 'fastify-pool', 'default')}
async function main () {
  const app = Fastify()
  const { PG, MYSQL, REDIS, MONGO } = process.env
  await app.register(pool, { pools: {
    pg: { backend: 'postgresql', url: PG, max: 2 },
    mysql2: { backend: 'mysql', url: MYSQL, max: 2 },
    ioredis: { backend: 'redis', url: REDIS, max: 2 },
    mongodb: { backend: 'mongodb', url: MONGO, max: 2 },
  } })
  const commands = {
    pg: (client) => client.query('SELECT 1 AS marker'),
    mysql2: (connection) => connection.query('SELECT 1 AS marker'),
    ioredis: (redis) => redis.set('marker', 1),
    mongodb: (db) => db.collection('marker').findOne(),
  }
  for (const [name, send] of Object.entries(commands)) {
    app.get('/' + name, { config: { pools: [name] } }, async (request) => {
      await send(request[name])
      return 'sent'
    })
  }
  await app.ready()
  for (const name in commands) {
    const url = '/' + name
    await app.inject(url)
    await Promise.all(Array.from({ length: ${commands} - 1 }, () => app.inject(url)))
  }
  const spans = globalThis.exporter.getFinishedSpans().filter(({ name, attributes }) => JSON.stringify([name, attributes]).includes('marker'))
  const scopeOf = (span) => (span.instrumentationScope ?? span.instrumentationLibrary).name
  console.log(JSON.stringify(Object.fromEntries(Object.keys(commands).map((name) => [name, spans.filter((span) => scopeOf(span).endsWith('instrumentation-' + name)).length]))))
  await app.close()
}
main().catch((error) => {
  console.error(error)
  process.exitCode = 1
})
`

const byRequire = (what, from, member) =>
  `const ${what} = require('${from}')${member === undefined ? '' : `.${member} ?? require('${from}')`}`
const byImport = (what, from) => `import ${what} from '${from}'`
const hook =
  "import { register } from 'node:module'\nregister('@opentelemetry/instrumentation/hook.mjs', import.meta.url)\n"

export default async ({ folder, install, run, check, server }) => {
  const at = folder('otel')
  const sdk =
    ['api', 'sdk-trace-node', 'sdk-trace-base', 'instrumentation', ...names.map((name) => `instrumentation-${name}`)]
  await install(at,
    ['fastify-pool', 'fastify', 'pg', 'mysql2', '@fastify/redis', '@fastify/mongodb', ...sdk.map((name) => `@opentelemetry/${name}`)])
  const [PG, MYSQL, REDIS, MONGO] =
    (await Promise.all(['postgres', 'mariadb', 'redis', 'mongo'].map((kind) => server(kind)))).map(({ url }) => url)
  const files = {
    'otel.cjs': setUp(byRequire),
    'app.cjs': app(byRequire),
    'otel.mjs': hook + setUp(byImport),
    'app.mjs': app(byImport),
  }
  for (const [name, text] of Object.entries(files)) writeFileSync(join(at, name), text)
  for (const [what, args] of [['CommonJS, --require', ['--require', './otel.cjs', 'app.cjs']], ['ESM, --import', ['--import', './otel.mjs', 'app.mjs']]]) {
    const { stdout, stderr } = await run(process.execPath, args, { cwd: at, env: { PG, MYSQL, REDIS, MONGO } })
    const spans = stdout.trim().startsWith('{') ? JSON.parse(stdout) : {}
    for (const name of names) {
      check(spans[name] === commands,
      `${what}: ${commands} spans for ${commands} commands of ${name}`, `${spans[name]} spans\n${stderr}`)
    }
  }
}
