// The connectors of the built-in backends, as the package exports them. A backend's code is loaded by the first call.
import type { MongoConnector } from './mongodb/connector.js'
import type { MongoOptions } from './mongodb/options.js'
import type { MysqlConnector } from './mysql/connector.js'
import type { MysqlOptions } from './mysql/options.js'
import type { PostgresConnector } from './postgresql/connector.js'
import type { PostgresOptions } from './postgresql/options.js'
import type { RedisClusterOptions } from './redis/cluster-options.js'
import type { RedisClusterConnector } from './redis/cluster.js'
import type { RedisConnector } from './redis/connector.js'
import type { RedisOptions } from './redis/options.js'
import type { SqliteConnector } from './sqlite/connector.js'
import type { SqliteDatabase } from './sqlite/handle.js'
import type { SqliteOptions } from './sqlite/options.js'

/**
 * MongoDB. A connection is the right to use one shared `MongoClient`, as a `Db` of its own. The driver keeps the
 * sockets, and finds the primary.
 *
 * A create opens nothing where the client has a server. Otherwise it waits for one as long as any server answers (an
 * election will end); once the driver has looked at all of them since then and found none, it rejects with the reason.
 *
 * A function for `url` or `connection` should give the same answer as long as it is valid: each other answer means
 * another client, with sockets and monitors of its own, up to 4; while there are that many, creates use the newest. The
 * driver gives up a client whose login is refused, so its connections are broken: the next create asks again.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`; `FST_POOL_CONNECT_FAILED` where a function fails, or takes
 * longer than `connectTimeout`. Nothing is opened yet.
 */
export async function mongodb (options: MongoOptions): Promise<MongoConnector> {
  return await (await import('./mongodb/connector.js')).mongodb(options)
}

/**
 * MySQL 8 and MariaDB 10.2.4 or later, on mysql2. A connection is one of mysql2's promise connections.
 *
 * In mode 'session' a connection is reset (COM_RESET_CONNECTION) before its first loan too, since a reset changes what
 * connecting had set: the `IGNORE_SPACE` of mysql2's flags, the `wait_timeout` of the flag `INTERACTIVE`, and what the
 * server's `init_connect` set (except for the character set, which is kept).
 *
 * A reset does not undo properties set on the object, nor a role (SET ROLE) that a stored function or trigger sets. A
 * statement from `prepare()` that is kept over a reset fails.
 *
 * A statement that runs when its connection is destroyed is killed, and the connection counts until the server has let
 * go of it. Not over a Unix socket, behind NAT or behind a balancer: there it goes on, for nobody, and a warning of the
 * process says so, once.
 *
 * A connection on which the server refused a write because it is read only (1290, 1836; 1792, unless the borrower asked
 * for a transaction that only reads) is broken, since another connection may reach a server that takes it. It is not
 * broken where `inspect` has found a replica.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`. Nothing is opened yet.
 */
export async function mysql (options: MysqlOptions): Promise<MysqlConnector> {
  return await (await import('./mysql/connector.js')).mysql(options)
}

/**
 * PostgreSQL (10 and later). A connection is one `pg.Client`.
 *
 * Where a connection is destroyed while a statement runs, the server is asked to cancel it (over a second, short
 * connection), so that its slot there is free when it counts as closed here. What the server does not end within 500 ms
 * is cut off.
 *
 * A connection on which the server refused a write (25006) is broken, since another connection may reach a server that
 * takes it. It is not broken where the server itself takes writes and only the borrower's transaction was read only
 * (PostgreSQL 14 and later tell the difference), nor where `inspect` has found a replica.
 *
 * Settings that every borrower should have belong into `connection` (`options: '-c search_path=app'`,
 * `statement_timeout`, ...): a reset goes back to them.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`. Nothing is opened yet.
 */
export async function postgresql (options: PostgresOptions): Promise<PostgresConnector> {
  return await (await import('./postgresql/connector.js')).postgresql(options)
}

/**
 * Redis. A connection is one exclusive ioredis connection that never reconnects by itself: the pool replaces a dead
 * one, and, when it is given back, one whose server answered READONLY.
 *
 * With `connection: { sentinels, name }` each create asks the sentinels once for the present master; the pool retries.
 * Another connection to each sentinel hears of a new master: then every connection to the old one is cut off, lent ones
 * too, since what is written there is lost.
 *
 * For a cluster there is `redisCluster`.
 *
 * Not undone by a reset: commands added by `defineCommand`, and other properties set on the object. What `duplicate()`
 * and `monitor()` open are connections outside of the pool, for the borrower to close. `options` of an exclusive
 * connection is frozen.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`. Nothing is opened yet.
 */
export async function redis (options: RedisOptions): Promise<RedisConnector> {
  return await (await import('./redis/connector.js')).redis(options)
}

/**
 * A Redis Cluster. A connection is the right to use one shared ioredis `Cluster`, the same object for all: the pool's
 * limits, deadlines and events work as in any pool, but nobody has a connection of his own, and nothing is reset.
 *
 * Safe beside other borrowers: single commands; `pipeline()`; `multi()` up to its `exec()`, which go out in one piece;
 * scripts. All keys of one of these must belong to one slot, or one node.
 *
 * Not safe, and refused with `FST_POOL_NOT_SUPPORTED` unless they stand in a pipeline: `multi({ pipeline: false })` and
 * WATCH, since commands of others would get into the transaction; and what changes the connection for all (AUTH,
 * CLIENT, HELLO, MONITOR, READONLY, RESET).
 *
 * Not safe, and not refused: blocking commands (BLPOP, WAIT, XREAD with BLOCK) hold up all others at that node.
 * Subscriptions and listeners are shared by all and stay until somebody removes them. `quit()` and `disconnect()` fail
 * everybody's commands; the next acquire connects again. For any of that, `duplicate()` gives a client outside of the
 * pool, for its caller to close.
 *
 * Where a node dies, its commands wait for its replica as ioredis is told to (`retryDelayOnFailover`,
 * `retryDelayOnClusterDown`, `maxRedirections`: 16 times 100 ms).
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`. Nothing is opened yet.
 */
export async function redisCluster (options: RedisClusterOptions): Promise<RedisClusterConnector> {
  return await (await import('./redis/cluster.js')).redisCluster(options)
}

/**
 * SQLite, on better-sqlite3, libsql or node:sqlite. A connection is a handle of its own, in WAL mode where it is a
 * file: one handle writes, and any number of others (`replica`) read at the same time.
 *
 * A write that resolved is stored, whatever failed before it on its handle. For that, rows of a write (RETURNING) and
 * of a PRAGMA are fetched at once, also by `iterate` (better-sqlite3 does nothing else while an iterator is open), and
 * a statement that is run again ends its earlier iterator.
 *
 * At return an open transaction is rolled back and iterators are ended. A handle with other temp objects, attached
 * databases or settings than before its first loan (after `onConnect`) is refused, so that the pool opens a new one.
 * That costs nothing where no statement was seen that can do so. Not undone: `last_insert_rowid()` and `changes()`, and
 * the rows of temp tables that `onConnect` made.
 *
 * A statement ends with the lease in which it was prepared: run later, it throws `FST_POOL_LEASE_RELEASED` (not with
 * reset 'none'). Those that `onConnect` prepared stay for all borrowers. A handle that is kept after its lease can't be
 * told from the next borrower's: it is the same object.
 *
 * A handle that reads has `query_only` on from its first loan (`onConnect` may still write); a write on it throws
 * `FST_POOL_NOT_SUPPORTED`. A borrower that switches it off on purpose can write; the next one can't.
 *
 * ':memory:' is one handle that lives, with its data, until `close()`: `destroy` only makes it clean, whatever the
 * pool's reason, and the next `create` returns it again. On it, what a borrower leaves is undone one by one; functions
 * that were defined and extensions stay.
 *
 * While another process has the lock, statements fail at once with SQLITE_BUSY, unless `connection.timeout` says to
 * block the event loop. Where another process was seen to write within the last minute, the handle that writes is lent
 * only when the lock is free, and its callers wait for that. `transactions` wait for the lock too, without blocking:
 * they try BEGIN IMMEDIATE again and again.
 *
 * @param D what a connection is: `DatabaseSync` with node:sqlite
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`. Nothing is opened yet.
 */
export async function sqlite<D = SqliteDatabase> (options: SqliteOptions): Promise<SqliteConnector<D>> {
  return await (await import('./sqlite/connector.js')).sqlite<D>(options)
}
