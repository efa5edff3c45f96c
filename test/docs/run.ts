// Runs blocks of the docs, each in a process of its own, on servers of the test. `npm test` has built the package.
//
// A comment behind a block says what to try, a line each:
//   sql <statement>                     before it runs, on its first database
//   prints <text>                       what the process wrote has this text
//   <METHOD> <path> [{"body"}] [(header: value)] -> <status> [body]
//                                       asked of `app`: JSON is compared, another text is in the reply
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import Database from 'libsql'
import { MongoClient } from 'mongodb'
import { createConnection } from 'mysql2/promise'
import pg from 'pg'
import type { Test } from 'tap'
import { startMariadb, startMongo, startPostgres, startRedis } from '../support/services.js'
import { transpile, type Chain } from './compile.js'
import { root } from './pages.js'
import { makeCertificate, startSecureMariadb, startSecurePostgres, startSecureRedis } from './tls.js'

const address = /'(postgres|postgresql|mysql|mariadb|mongodb|rediss?):\/\/[^']*'/g

/** Where a server is. */
interface At { readonly url: string }

interface Try { method: string, url: string, payload?: string, headers: object, status: number, body: string }

/** @returns what runs a chain, on servers that are started when one asks for them */
export async function runner (t: Test): Promise<(t: Test, chain: Chain) => Promise<void>> {
  mkdirSync(join(root, '.cache'), { recursive: true })
  const folder = mkdtempSync(join(root, '.cache', 'docs-'))
  t.teardown(() => { rmSync(folder, { recursive: true }) })
  const certificate = makeCertificate(folder)
  const servers = new Map<string, Promise<At | undefined>>()
  const starts = new Map<string, () => Promise<At | undefined>>([
    ['postgres', () => startPostgres(t)], ['mysql', () => startMariadb(t)], ['mongodb', () => startMongo(t)],
    ['redis', () => startRedis(t)], ['rediss', () => startSecureRedis(t, certificate)],
    ['postgres, TLS', () => startSecurePostgres(t, certificate)],
    ['mysql, TLS', () => startSecureMariadb(t, certificate)],
  ])
  const serverOf = async (scheme: string, code: string): Promise<At | undefined> => {
    const tls = /\bssl: \{/.test(code) ? ', TLS' : ''
    const kind = `${scheme.replace('mariadb', 'mysql').replace('postgresql', 'postgres')}${tls}`
    if (!servers.has(kind)) servers.set(kind, starts.get(kind)!())
    return await servers.get(kind)!
  }
  let n = 0
  return async (t, chain) => {
    const name = `docs_${++n}`
    const urls = new Map<string, string>()
    try {
      for (const [literal, scheme = ''] of chain.code.matchAll(address)) {
        const server = await serverOf(scheme, chain.code)
        if (server === undefined) {
          t.pass(`${chain.name}: not run, there is no ${scheme} here`)
          return
        }
        // A database of its own for each address.
        if (!urls.has(literal)) urls.set(literal, await createDatabase(server, scheme, `${name}_${urls.size}`))
      }
      const at = join(folder, name)
      mkdirSync(at)
      copyFileSync(certificate.cert, join(at, 'ca.pem'))
      await runIn(t, at, chain, urls)
    } finally {
      for (const url of urls.values()) await dropDatabase(url)
    }
  }
}

async function runIn (t: Test, at: string, chain: Chain, urls: ReadonlyMap<string, string>): Promise<void> {
  const { code, tries, prints, statements } = planOf(chain)
  await prepare([...urls.values()][0] ?? join(at, /'([\w-]+\.db)'/.exec(code)?.[1] ?? 'none.db'), statements)
  const filled = code.replace(address, (literal) => `'${urls.get(literal)}'`)
    .replaceAll('port: 3000', 'port: 0').replaceAll("host: '0.0.0.0'", "host: '127.0.0.1'")
  writeFileSync(join(at, 'block.mjs'), transpile(filled) + afterwards(tries))
  const child = spawn(process.execPath, ['block.mjs'],
    { cwd: at, env: { ...process.env, NODE_OPTIONS: '' }, stdio: ['ignore', 'pipe', 'pipe'] })
  let said = ''
  const hear = (text: string) => { said += text }
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', hear)
  const [status] = await once(child, 'close') as [number | null]
  t.equal(status, 0, `${chain.name} runs${status === 0 ? '' : `\n${said}`}`)
  for (const text of prints) t.match(said, text, `${chain.name} prints it`)
}

async function createDatabase (server: At, scheme: string, name: string): Promise<string> {
  if (scheme.startsWith('redis')) return server.url
  if (scheme !== 'mongodb') await sql(server.url, [`create database ${name}`])
  return Object.assign(new URL(server.url), { pathname: `/${name}` }).href
}

async function dropDatabase (url: string): Promise<void> {
  if (url.startsWith('redis')) return
  if (url.startsWith('mongodb')) {
    const client = new MongoClient(url)
    await client.db().dropDatabase()
    return await client.close()
  }
  const name = new URL(url).pathname.slice(1)
  await sql(Object.assign(new URL(url), { pathname: url.startsWith('mysql') ? '' : '/postgres' }).href,
    [`drop database ${name}`])
}

async function prepare (where: string, statements: readonly string[]): Promise<void> {
  if (statements.length === 0) return
  if (/^(postgres|mysql)/.test(where)) return await sql(where, statements)
  const file = new Database(where)
  for (const statement of statements) file.exec(statement)
  file.close()
}

async function sql (url: string, statements: readonly string[]): Promise<void> {
  if (url.startsWith('mysql')) {
    const connection = await createConnection(url)
    for (const statement of statements) await connection.query(statement)
    return await connection.end()
  }
  const client = new pg.Client(url)
  await client.connect()
  for (const statement of statements) await client.query(statement)
  await client.end()
}

function planOf ({ code, blocks, name }: Chain) {
  const lines = blocks.flatMap(({ tries }) => tries).map((line) => line.trim()).filter((line) => line !== '')
  const behind = (word: string) =>
    lines.filter((line) => line.startsWith(`${word} `)).map((line) => line.slice(word.length + 1))
  const asks = lines.filter((line) => !/^(sql|prints) /.test(line))
  const tries = asks.map((line): Try => {
    const [, method = '', url = '', payload = '', header, value, status, body = ''] =
      /^([A-Z]+) (\S+)(?: (\{.*?\}))?(?: \(([\w-]+): ([^)]*)\))? -> (\d+)(?: (.*))?$/.exec(line) ?? []
    if (method === '') throw new Error(`${name}: what is '${line}'?`)
    const type = payload === '' ? {} : { 'content-type': 'application/json' }
    const headers = header === undefined ? type : { ...type, [header]: value }
    return { method, url, ...payload !== '' && { payload }, headers, status: Number(status), body }
  })
  return { code, tries, prints: behind('prints'), statements: behind('sql') }
}

/** What runs behind the block: asks its app, and closes it. */
function afterwards (tries: readonly Try[]): string {
  return `
import { isDeepStrictEqual } from 'node:util'
for (const { status, body, ...asked } of ${JSON.stringify(tries)}) {
  const reply = await app.inject(asked)
  const right = /^[[{]/.test(body) ? isDeepStrictEqual(reply.json(), JSON.parse(body)) : reply.body.includes(body)
  if (reply.statusCode !== status || !right) {
    throw new Error(asked.method + ' ' + asked.url + ' -> ' + reply.statusCode + ' ' + reply.body)
  }
}
if (typeof app !== 'undefined') { await app.ready(); await app.close() }
`
}
