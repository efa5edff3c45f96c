import t, { type Test } from 'tap'
import { inspect } from 'node:util'
import Fastify from 'fastify'
import type { PoolErrorCode } from '../../types/errors.js'
import { PoolError, badOption, scrub, show } from '../../lib/engine/errors.js'
import { secretsOf } from '../../lib/engine/secrets.js'

const holders = [{ pool: 'db', holder: { route: '/secret-route', id: 'req-1' }, id: 1, heldFor: 8200 }]

// --- PoolError -------------------------------------------------------------------------------------------------------

t.test('an error that means "unavailable" carries 503 and when to come back, others carry nothing', async (t) => {
  const codes: Record<PoolErrorCode, boolean> = {
    FST_POOL_ACQUIRE_TIMEOUT: true,
    FST_POOL_QUEUE_FULL: true,
    FST_POOL_OVERLOADED: true,
    FST_POOL_CIRCUIT_OPEN: true,
    FST_POOL_CONNECT_FAILED: true,
    FST_POOL_CLOSED: true,
    FST_POOL_DEADLOCK: false,
    FST_POOL_ABORTED: false,
    FST_POOL_BAD_OPTIONS: false,
    FST_POOL_DUPLICATE_NAME: false,
    FST_POOL_NOT_FOUND: false,
    FST_POOL_MISSING_DRIVER: false,
    FST_POOL_NOT_LEASED: false,
    FST_POOL_LEASE_RELEASED: false,
    FST_POOL_RESET_FAILED: false,
    FST_POOL_NOT_SUPPORTED: false,
    FST_POOL_TRANSACTION_ENDED: false,
    FST_POOL_COMMIT_TIMEOUT: false,
    FST_POOL_COMMIT_UNKNOWN: false,
  }
  for (const [code, unavailable] of Object.entries(codes) as [PoolErrorCode, boolean][]) {
    const error = new PoolError(code, 'text', { retryAfter: 5 })
    t.ok(error instanceof Error)
    t.equal(error.name, 'PoolError')
    t.equal(error.code, code)
    t.equal(error.message, 'text')
    const failed = code === 'FST_POOL_COMMIT_TIMEOUT' || code === 'FST_POOL_COMMIT_UNKNOWN'
    t.equal(error.statusCode, unavailable ? 503 : failed ? 500 : undefined, code)
    t.strictSame(error.headers, unavailable ? { 'retry-after': '5' } : undefined, code)
    t.equal('statusCode' in error, unavailable || failed, 'not even as undefined')
    t.equal('cause' in error, false)
  }
})

t.test('retry-after is a whole number of seconds, from 1 to 30, whatever was predicted', async (t) => {
  const cases: [number | undefined, string][] = [
    [undefined, '1'], [0, '1'], [-5, '1'], [0.2, '1'], [1, '1'], [1.01, '2'], [29.5, '30'], [30, '30'], [31, '30'],
    [Infinity, '30'], [-Infinity, '1'], [NaN, '1'],
  ]
  for (const [retryAfter, expected] of cases) {
    t.equal(new PoolError('FST_POOL_QUEUE_FULL', 'x', { retryAfter }).headers!['retry-after'], expected,
      String(retryAfter))
  }
})

t.test('who holds connections is there for the log, and in no form that a client may get', async (t) => {
  const error = new PoolError('FST_POOL_ACQUIRE_TIMEOUT', 'x', { holders })
  t.equal(error.holders, holders)
  t.notOk(Object.keys(error).includes('holders'))
  t.notOk(JSON.stringify(error).includes('secret-route'))
  t.notOk(JSON.stringify({ ...error }).includes('secret-route'))
  t.notOk(inspect(error).includes('secret-route'))
  t.equal('holders' in new PoolError('FST_POOL_ACQUIRE_TIMEOUT', 'x'), false)
})

t.test('Fastify answers 503 with retry-after and the message, without the holders and the cause', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  app.get('/', async () => {
    throw new PoolError('FST_POOL_QUEUE_FULL', 'full', { retryAfter: 3, holders, cause: new Error('inner') })
  })
  const response = await app.inject('/')
  t.equal(response.statusCode, 503)
  t.equal(response.headers['retry-after'], '3')
  t.strictSame(response.json(),
    { statusCode: 503, code: 'FST_POOL_QUEUE_FULL', error: 'Service Unavailable', message: 'full' })
})

t.test('badOption says the path, what was given and what is expected', async (t) => {
  const error = badOption('pools.db.max', 'ten', 'an integer')
  t.equal(error.code, 'FST_POOL_BAD_OPTIONS')
  t.equal(error.message, "option pools.db.max is 'ten': expected an integer")
  t.equal(badOption('', 5, 'an object').message, 'the options: given 5: expected an object')
})

t.test('badOption shows no value of an option that may hold a secret, and no text that looks like a URL', async (t) => {
  const given = (path: string, value: unknown) =>
    / (?:is|given) (.*): expected/.exec(badOption(path, value, 'x').message)![1]
  for (const path of ['url', 'pools.db.url', 'connection', 'pools.db.connection', 'pools.db.connection.user', 'password', 'authToken', 'apiKey']) {
    t.equal(given(path, 'hunter2'), 'a text', path)
    t.equal(given(path, 12345), 'a number', path)
    t.equal(given(path, 12345n), 'a bigint', path)
  }
  // Only whole names count: these say nothing about secrets.
  for (const path of ['maxConnecting', 'pools.tokens.max', 'onConnect']) t.equal(given(path, 'ten'), "'ten'", path)
  for (const text of ['redis://:p@host', ':p@host', 'p@ss', 'a\nb', 'x'.repeat(61)]) {
    t.equal(given('max', text),
      'a text', text)
  }
  t.equal(show('max'), 'max')
  t.equal(show('user:pass@host'), 'a text')
})

// --- What is secret --------------------------------------------------------------------------------------------------

t.test('how many there are is no secret', async (t) => {
  t.strictSame(secretsOf({ connection: { secrets: [] } }), [])
  t.strictSame(secretsOf({ connection: { secrets: ['hunter2'] } }).includes('1'), false)
  t.equal(scrub(new Error('connect ECONNREFUSED 127.0.0.1'), secretsOf({ connection: { secrets: [] } })).message,
    'connect ECONNREFUSED 127.0.0.1')
})

function has (t: Test, options: { url?: unknown, connection?: unknown }, ...secrets: string[]): void {
  const found = secretsOf(options)
  for (const secret of secrets) t.ok(found.includes(secret), `'${secret}' of ${inspect(options, { depth: 5 })}`)
}

t.test('the password of a url is a secret: raw, decoded and encoded', async (t) => {
  has(t, { url: 'redis://user:hunter2@127.0.0.1:6379/0' }, 'hunter2')
  has(t, { url: 'redis://:hunter2@127.0.0.1' }, 'hunter2')
  has(t, { url: 'REDISS://:hunter2@[::1]:6379' }, 'hunter2')
  has(t, { url: '  redis://:hunter2@host' }, 'hunter2')
  has(t, { url: 'mongodb+srv://user:hunter2@cluster.example/db?w=1' }, 'hunter2')
  has(t, { url: 'mongodb://user:hunter2@h1:27017,h2:27017,[::1]:27018/db' }, 'hunter2')
  has(t, { url: 'redis://a:hunter2@h1:1,b:swordfish@h2:2' }, 'hunter2', 'swordfish')
  has(t, { url: 'redis://u:p%40ss%2Fw@host' }, 'p%40ss%2Fw', 'p@ss/w')
  has(t, { url: 'redis://u:p@ss@host' }, 'p@ss', 'p%40ss')
  has(t, { url: 'redis://u:pa:ss:w@host' }, 'pa:ss:w', 'pa%3Ass%3Aw')
  has(t, { url: 'redis://u:pa/ss@host/0' }, 'pa/ss')
  has(t, { url: 'redis://u:pa?ss@host' }, 'pa?ss')
  has(t, { url: 'redis://u:pa#ss@host' }, 'pa#ss')
  has(t, { url: 'redis://u:pa,ss@host' }, 'pa,ss')
  has(t, { url: 'redis://u:100%hunter2@host' }, '100%hunter2')
  has(t, { url: 'user:hunter2@host:6379' }, 'hunter2')
})

t.test('a url without a password has no secret', async (t) => {
  for (const url of [
    'redis://127.0.0.1:6379', 'redis://user@127.0.0.1:6379', 'redis://user:@host', 'redis://:@host',
    'redis://[::1]:6379/0', 'redis://user@[::1]:6379',
    'mongodb://h1:1,h2:2/db?authSource=admin&authMechanism=SCRAM-SHA-256', 'app.db', ':memory:', 'file:me@home.db', '',
    'not a url', undefined, null, 5,
  ]) t.strictSame(secretsOf({ url }), [], String(url))
})

t.test('secrets in the query of a url are secrets', async (t) => {
  has(t, { url: 'libsql://host?authToken=eyJhbGci' }, 'eyJhbGci')
  has(t, { url: 'file:app.db?encryptionKey=hunter2' }, 'hunter2')
  has(t, { url: 'mongodb://host/?tlsCertificateKeyFilePassword=hunt%26er&w=1' }, 'hunt%26er', 'hunt&er')
  has(t, { url: 'mongodb://host/?authMechanismProperties=SERVICE_NAME:x,AWS_SESSION_TOKEN:tok123' }, 'tok123')
  t.notOk(secretsOf({
    url: 'mongodb://host/?authMechanismProperties=SERVICE_NAME:mongo,AWS_SESSION_TOKEN:tok123',
  }).includes('mongo'))
})

t.test('secrets among the driver\'s options are found by their names, at any depth', async (t) => {
  for (const key of [
    'password', 'sentinelPassword', 'passphrase', 'pwd', 'authToken', 'secret', 'clientSecret', 'key', 'apiKey',
    'privateKey', 'encryptionKey', 'pfx', 'credentials',
  ]) {
    has(t, { connection: { [key]: 'hunter2' } }, 'hunter2')
    has(t, { connection: { tls: [{ deep: { [key]: 'hunter2' } }] } }, 'hunter2')
  }
  has(t, { connection: { auth: { username: 'bob', password: 'hunter2' } } }, 'hunter2')
  has(t, { connection: { auth: { anything: 'hunter2' } } }, 'hunter2')
  has(t, { connection: { credentials: ['hunter2', { value: 'swordfish' }] } }, 'hunter2', 'swordfish')
  has(t, { connection: new Map([['password', 'hunter2']]) }, 'hunter2')
  has(t, { connection: { proxy: 'http://u:hunter2@proxy', other: new URL('http://u:swordfish@proxy') } }, 'hunter2',
    'swordfish')
  t.strictSame(secretsOf({
    connection: {
      auth: { username: 'bob' }, user: 'bob', host: 'h', keyPrefix: 'app:', authSource: 'admin', tls: { ca: 'cert' },
    }
  }), [])
})

t.test('a secret may be bytes or a number', async (t) => {
  has(t, { connection: { tls: { key: Buffer.from('-----PEM-----') } } }, '-----PEM-----')
  has(t, { connection: { password: new Uint8Array(Buffer.from('hunter2')) } }, 'hunter2')
  has(t, { connection: { password: 123456 } }, '123456')
  has(t, { connection: { password: 123456789012345678901n } }, '123456789012345678901')
  t.strictSame(secretsOf({
    connection: { password: true, token: null, secret: undefined, key: () => 'x', tls: { ca: Buffer.from('public') } },
  }), [])
})

t.test('whatever is among the options, looking for secrets in it ends, throws nothing and calls nothing', async (t) => {
  const cyclic: Record<string, unknown> = { password: 'hunter2' }
  cyclic.self = cyclic
  cyclic.inner = { credentials: cyclic }
  has(t, { connection: cyclic }, 'hunter2')
  t.strictSame(secretsOf({ connection: { get password () { throw new Error('called') } } }), [])
  t.doesNotThrow(() => secretsOf({ connection: { password: '\ud800lone' }, url: 'redis://:\ud800@host' }))
  for (const connection of [undefined, null, 5, 'text', [], Object.create(null),
    Symbol('s')]) t.strictSame(secretsOf({ connection }), [])
})

t.test('the longest secret comes first, so that one that is part of another does not spoil it', async (t) => {
  const found = secretsOf({ url: 'redis://:hunter2@host', connection: { password: 'hunter2hunter2' } })
  t.strictSame(found, [...found].sort((a, b) => b.length - a.length))
  t.equal(scrub(new Error('hunter2hunter2 hunter2'), found).message, '*** ***')
})

// --- Taking it out ---------------------------------------------------------------------------------------------------

t.test('a secret is taken out of name, message, code and stack, in each way in which it may be written', async (t) => {
  const password = 'p@s/s "w\\é\u2028&+'
  const secrets = secretsOf({ connection: { password } })
  const forms = [
    password, encodeURIComponent(password), encodeURIComponent(password).toLowerCase(), encodeURI(password),
    JSON.stringify(password).slice(1, -1),
    new URLSearchParams({ x: password }).toString().slice(2),
    new URL(`http://u:${encodeURIComponent(password)}@h`).password,
    Object.assign(new URL('http://h'), { password }).password,
  ]
  for (const form of forms) {
    const error =
      Object.assign(new Error(`can't reach redis://:${form}@host`), { code: `E ${form}`, name: `N ${form}` })
    const clean = scrub(error, secrets)
    t.equal(clean.message, "can't reach redis://:***@host", form)
    t.equal((clean as { code?: unknown }).code, 'E ***')
    t.equal(clean.name, 'N ***')
    t.notOk(clean.stack!.includes(form))
    t.match(clean.stack, /errors\.test\.ts/, 'where it came from stays')
  }
})

t.test('a password that is encoded in the url is taken out decoded too, and the other way round', async (t) => {
  const url = 'redis://u:p%40ss%2fword@host'
  for (const text of ['p%40ss%2fword', 'p%40ss%2Fword', 'p@ss/word']) {
    t.equal(scrub(new Error(`<${text}>`),
      secretsOf({ url })).message, '<***>', text)
  }
  for (const text of ['p@ss:w', 'p%40ss%3Aw', 'p%40ss%3aw']) {
    t.equal(scrub(new Error(`<${text}>`),
      secretsOf({ url: 'redis://u:p@ss:w@host' })).message, '<***>', text)
  }
})

t.test('the original is left as it is, and nothing else of it is taken over', async (t) => {
  const error =
    Object.assign(new TypeError('hunter2'), { command: { args: ['hunter2'] }, input: 'hunter2', errno: -111, code: 42 })
  const clean = scrub(error, ['hunter2'])
  t.not(clean, error)
  t.equal(error.message, 'hunter2')
  t.ok(clean instanceof Error)
  t.equal(clean.name, 'TypeError')
  t.strictSame({ ...clean }, { code: 42 })
  t.notOk(inspect(clean, { showHidden: true, depth: 9 }).includes('hunter2'))
})

t.test('causes are scrubbed copies too, as deep as they go, and a circle of them ends', async (t) => {
  const inner = Object.assign(new Error('inner hunter2', { cause: 'text hunter2' }), { input: 'hunter2' })
  const clean = scrub(new Error('outer', { cause: inner }), ['hunter2'])
  t.match(clean.cause, { message: 'inner ***', cause: { message: 'text ***' } })
  t.notOk(inspect(clean, { showHidden: true, depth: 9 }).includes('hunter2'))
  t.notOk(Object.keys(clean).includes('cause'))

  const circle = new Error('circle hunter2')
  circle.cause = circle
  t.notOk(inspect(scrub(circle, ['hunter2']), { depth: 20 }).includes('hunter2'))
})

t.test('an error of several without a message of its own says theirs', async (t) => {
  const error = new AggregateError([new Error('connect ::1 hunter2'), new Error('connect 127.0.0.1')])
  t.equal(scrub(error, ['hunter2']).message, 'connect ::1 ***; connect 127.0.0.1')
  t.equal(scrub(new AggregateError([], ''), []).message, '')
})

t.test('whatever was thrown becomes an error', async (t) => {
  const text = (thrown: unknown) => scrub(thrown, ['hunter2']).message
  t.equal(text('bad hunter2'), 'bad ***')
  t.equal(text(undefined), 'undefined')
  t.equal(text(null), 'null')
  t.equal(text(5), '5')
  t.equal(text(Symbol('hunter2')), 'Symbol(***)')
  t.equal(text({ message: 'like an error hunter2', code: 'E' }), 'like an error ***')
  t.equal(text({}), '[object Object]')
  t.equal(text(Object.create(null)), '[object Object]')
  t.match(scrub({ message: 'x', code: 'E hunter2' }, ['hunter2']), { code: 'E ***' })
  t.equal(scrub(Object.assign(new Error('x'), { name: 5, code: {} }), []).name, 'Error')
})

t.test('one of ours stays one of ours, with its status, holders and cause', async (t) => {
  const cause = new Error('the caller\'s own')
  const fine = new PoolError('FST_POOL_QUEUE_FULL', 'full', { cause, holders, retryAfter: 7 })
  t.equal(scrub(fine, ['hunter2']), fine)
  const dirty = new PoolError('FST_POOL_QUEUE_FULL', 'full of hunter2', { cause, holders, retryAfter: 7 })
  const clean = scrub(dirty, ['hunter2'])
  t.ok(clean instanceof PoolError)
  t.match(clean,
    { message: 'full of ***', code: 'FST_POOL_QUEUE_FULL', statusCode: 503, headers: { 'retry-after': '7' } })
  t.equal(clean.cause, cause)
  t.equal((clean as PoolError).holders, holders)
  t.notOk(clean.stack!.includes('hunter2'))
  t.equal(scrub(new PoolError('FST_POOL_NOT_FOUND', 'hunter2'), ['hunter2']).cause, undefined)
})

t.test('a short secret is taken out where it stands by itself, and makes no riddle of other words', async (t) => {
  const clean = (text: string, password: string) => scrub(new Error(text), secretsOf({ connection: { password } }))
    .message
  t.equal(clean('can not reach redis://:a@host, password=a', 'a'), 'can not reach redis://:***@host, password=***')
  t.equal(clean('redis error: ed', 'ed'), 'redis error: ***')
  t.equal(clean('mongodb://u:db1@h', 'db1'), 'mongodb://u:***@h')
  t.equal(clean('été é', 'é'), 'été ***')
  t.equal(clean('a password of four letters: passe', 'pass'), 'a ***word of four letters: ***e',
    'four letters and more: wherever they are')
})

t.test('letters that mean something in a pattern mean themselves', async (t) => {
  for (const password of [
    '.*.*', '$&$1', '^a|b$', '[a-z]', '(x)', 'a\\d+', '{1,2}', 'a-b-c', '****', '%zz%', '***', 'a/b',
  ]) {
    const secrets = secretsOf({ connection: { password } })
    t.equal(scrub(new Error(`<${password}> is wrong here`), secrets).message, '<***> is wrong here', password)
    t.equal(scrub(new Error('nothing to hide'), secrets).message, 'nothing to hide', password)
  }
})

t.test('without secrets nothing is replaced', async (t) => {
  t.equal(scrub(new Error('as it is'), []).message, 'as it is')
})
