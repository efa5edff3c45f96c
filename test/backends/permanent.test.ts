import t from 'tap'
import { isPermanent as ofMongodb } from '../../lib/backends/mongodb/errors.js'
import { isPermanent as ofMysql } from '../../lib/backends/mysql/errors.js'
import { isPermanent as ofPostgresql } from '../../lib/backends/postgresql/errors.js'
import { isPermanent as ofRedis } from '../../lib/backends/redis/errors.js'
import { isPermanent as ofSqlite } from '../../lib/backends/sqlite/dialect.js'

const failure = (fields: object): Error => Object.assign(new Error(''), fields)

// What real servers answer on demand is in the contracts of the backends.
const all: ReadonlyArray<readonly [
  name: string, isPermanent: (error: unknown) => boolean, lasting: readonly object[], passing: readonly object[]
]> = [
  ['postgresql', ofPostgresql, [], [
    { code: '53300', severity: 'FATAL' }, { code: '57P03', severity: 'FATAL' }, { code: '57P01', severity: 'FATAL' },
    { code: '42501', severity: 'ERROR' }, { code: '08P01', severity: 'FATAL' }, { message: 'Connection terminated' },
  ]],
  ['mysql', ofMysql, [
    { errno: 1129 }, { errno: 1130 }, { errno: 1251 }, { errno: 1524 }, { errno: 3118 }, { errno: 3159 },
    { code: 'AUTH_SWITCH_PLUGIN_ERROR' }, { code: 'HANDSHAKE_SSL_ERROR', message: 'self-signed certificate' },
  ], [
    { errno: 1040 }, { errno: 1203 }, { errno: 1226 }, { errno: 1053 }, { code: 'PROTOCOL_CONNECTION_LOST' },
    { code: 'HANDSHAKE_SSL_ERROR', message: 'read ECONNRESET' },
  ]],
  ['redis', ofRedis, [
    { message: 'NOPERM this user has no permissions to run the \'select\' command' },
    { message: 'DENIED Redis is running in protected mode' }, { message: 'NOPROTO unsupported protocol version' },
    { message: 'ERR invalid password' },
    { message: 'Failed to refresh slots cache.', lastNodeError: failure({ message: 'WRONGPASS invalid' }) },
  ], [
    { message: 'ERR max number of clients reached' }, { message: 'LOADING Redis is loading the dataset in memory' },
    { message: 'MASTERDOWN Link with MASTER is down' }, { message: 'Connection is closed.' },
    { message: 'Failed to refresh slots cache.', lastNodeError: failure({ code: 'ECONNREFUSED' }) },
    { message: 'Failed to refresh slots cache.', lastNodeError: null },
  ]],
  ['mongodb', ofMongodb, [
    { name: 'MongoServerError', code: 8000 }, { name: 'MongoServerError', code: 13 },
    { name: 'MongoCompatibilityError' }, { name: 'MongoParseError' },
  ], [
    { name: 'MongoServerSelectionError' }, { name: 'MongoNetworkError' }, { name: 'MongoServerError', code: 91 },
    { name: 'Error', code: 18 },
  ]],
  ['sqlite', ofSqlite, [
    { code: 'SQLITE_CORRUPT_INDEX' }, { code: 'ERR_SQLITE_ERROR', errcode: 26 },
  ], [
    { code: 'SQLITE_BUSY' }, { code: 'SQLITE_CANTOPEN' }, { code: 'SQLITE_IOERR' },
    { code: 'ERR_SQLITE_ERROR', errcode: 14 },
  ]],
]

for (const [name, isPermanent, lasting, passing] of all) {
  t.test(name, async (t) => {
    const common = name === 'sqlite' ? [] : [{ code: 'SELF_SIGNED_CERT_IN_CHAIN' }, { code: 'FST_POOL_BAD_OPTIONS' }]
    for (const fields of [...lasting, ...common]) {
      t.equal(isPermanent(failure(fields)), true, JSON.stringify(fields))
      t.equal(isPermanent(new Error('wrapped', { cause: failure(fields) })), true)
    }
    const network = ['ECONNREFUSED', 'ENOTFOUND', 'ETIMEDOUT', 'ECONNRESET'].map((code) => ({ code }))
    for (const fields of [...passing, ...network]) t.equal(isPermanent(failure(fields)), false, JSON.stringify(fields))
    for (const thrown of [undefined, null, 'WRONGPASS', 18]) t.equal(isPermanent(thrown), false, String(thrown))
  })
}
