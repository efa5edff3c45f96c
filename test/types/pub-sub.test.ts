import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { expectTypeOf } from 'expect-type'
import type { Cluster, Redis } from 'ioredis'
import type { Client } from 'pg'
import t from 'tap'
import ts from 'typescript'
import type {
  Connector, Messages, PoolFace, PostgresConnector, PostgresNotification, BackendOf, Queued, RedisClusterConnector,
  RedisConnector, RedisMessage, Unsubscribe,
} from '../../index.js'

// What is checked here is checked by `npm run typecheck`; nothing of it runs.
export async function checkTypes (
  redis: RedisConnector, cluster: RedisClusterConnector, postgres: PostgresConnector, plain: Connector<Redis>
): Promise<void> {
  for (const backend of [redis, cluster]) {
    expectTypeOf(backend.subscribe('a', (message, channel) => {
      expectTypeOf([message, channel]).toEqualTypeOf<string[]>()
    }, { onReconnect: () => {}, signal: AbortSignal.abort() })).toEqualTypeOf<Promise<Unsubscribe>>()
    expectTypeOf(backend.subscribe({ pattern: 'a' })).toEqualTypeOf<Messages<RedisMessage>>()
    expectTypeOf(backend.subscribe({ shard: 'a' }, { limit: 1 })).toEqualTypeOf<Messages<RedisMessage>>()
    for await (const message of backend.subscribe('a')) {
      expectTypeOf(message).toEqualTypeOf<Queued<RedisMessage>>()
      expectTypeOf(message.dropped).toEqualTypeOf<number>()
    }
    expectTypeOf(backend.subscribe('a')).toExtend<AsyncIterableIterator<Queued<RedisMessage>>>()
    // @ts-expect-error one of them
    backend.subscribe({ pattern: 'a', shart: 'b' })
    // @ts-expect-error a function has nothing to limit
    backend.subscribe('a', () => {}, { limit: 5 })
    // @ts-expect-error
    backend.subscribe(5)
  }
  expectTypeOf(postgres.listen('a', (payload, channel, notification) => {
    expectTypeOf([payload, channel]).toEqualTypeOf<string[]>()
    expectTypeOf(notification).toEqualTypeOf<PostgresNotification>()
  })).toEqualTypeOf<Promise<Unsubscribe>>()
  expectTypeOf(postgres.listen('a', { limit: 5 })).toEqualTypeOf<Messages<PostgresNotification>>()
  // @ts-expect-error PostgreSQL has no patterns
  postgres.listen({ pattern: 'a' })
  // @ts-expect-error only the backends' own connectors can
  plain.subscribe('a')

  // What `app.pools.get(name).backend` can follows from its connections, and nothing from what is not known of them.
  expectTypeOf<BackendOf<Redis>>().toHaveProperty('client').toEqualTypeOf<Redis>()
  expectTypeOf<BackendOf<Cluster>>().toHaveProperty('client').toEqualTypeOf<Cluster>()
  expectTypeOf<BackendOf<Cluster>>().toHaveProperty('subscribe')
  expectTypeOf<BackendOf<Redis>>().toHaveProperty('subscribe')
  expectTypeOf<BackendOf<Client>>().toHaveProperty('listen')
  expectTypeOf<BackendOf<unknown>>().toBeUnknown()
  expectTypeOf<BackendOf<{ id: number }>>().toBeUnknown()
  expectTypeOf<BackendOf<any>>().toBeUnknown()
  expectTypeOf<PoolFace<Redis, RedisConnector>>().toExtend<PoolFace<Redis, Connector<Redis> & BackendOf<Redis>>>()
}

t.test('types are checked by the compiler', async (t) => { t.type(checkTypes, 'function') })

t.test('the code of docs/pub-sub.md compiles', async (t) => {
  const root = fileURLToPath(new URL('../../', import.meta.url))
  const page = readFileSync(`${root}docs/pub-sub.md`, 'utf8')
  const blocks = [...page.matchAll(/^```ts\n(.*?)^```$/gms)].map(([, code]) => code!)
  t.ok(blocks.length >= 4)
  const file = `${root}test/types/pub-sub-page.ts`
  const text = [
    "import { Readable } from 'node:stream'",
    "import type { FastifyInstance } from 'fastify'",
    "import type { Messages, PoolFace, PostgresConnector, RedisConnector, RedisMessage } from 'fastify-pool'",
    "import type { Redis } from 'ioredis'",
    "import type { Client } from 'pg'",
    "declare module 'fastify-pool' { interface RequestPools { cache: Redis, db: Client } }",
    'declare const app: FastifyInstance',
    'declare const signal: AbortSignal',
    'declare const cache: PoolFace<Redis, RedisConnector>',
    'declare const db: PoolFace<Client, PostgresConnector>',
    ...blocks.map((code, at) => `export async function block${at} () {\n${code}}`),
  ].join('\n')
  const { config } = ts.readConfigFile(`${root}tsconfig.json`, ts.sys.readFile)
  const { options } = ts.parseJsonConfigFileContent({ ...config, include: [], files: [file] }, ts.sys, root)
  const host = ts.createCompilerHost(options)
  const { fileExists, getSourceFile } = host
  host.fileExists = (name) => name === file || fileExists(name)
  host.getSourceFile = (name, target, ...more) =>
    name === file ? ts.createSourceFile(name, text, target) : getSourceFile(name, target, ...more)
  const program = ts.createProgram([file], { ...options, noEmit: true, noUnusedLocals: false }, host)
  const found = ts.getPreEmitDiagnostics(program, program.getSourceFile(file))
  t.strictSame(found.map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, '\n')), [])
})
