import type { SubscriptionStats } from './messages.js'

/** What a connection is for: 'primary' reads and writes, 'replica' only reads. */
export type Role = 'primary' | 'replica'

/** What a server of a pool over several is for. 'peer': all of them are equal, and take reads and writes. */
export type TargetRole = Role | 'peer'

/**
 * Why a connection was destroyed. The first five are the pool's own decision (it evicts); the others were asked for, or
 * happened.
 */
export type DestroyReason =
  /** More idle connections than needed: `idleTimeout` passed, or the pool was made smaller. */
  | 'idle'
  /** `maxLifetime` passed. */
  | 'lifetime'
  /** Lent `maxUses` times. */
  | 'uses'
  /** `validate` said no, failed, or took longer than `validateTimeout`. */
  | 'invalid'
  /** Created before the last `evict()`. */
  | 'stale'
  /** It died, or something on it failed. */
  | 'error'
  /** Its request ended abnormally and something may still be using it. */
  | 'aborted'
  /** Its lease was reported as leaked, and nobody can release it any more. */
  | 'leaked'
  /** Its lease was out for longer than `holdTimeout`. */
  | 'overdue'
  /** The pool closes. */
  | 'closed'
  /** The borrower destroyed it without an error, or the pool no longer wanted it when it came. */
  | 'released'

/**
 * Why a connection can't be made. `refused`: nothing listens there. `name`: its host name is not known. `timeout`: no
 * answer. `unreachable`: no way leads there. `tls`: no agreement on encryption. `login`: the server refuses the user.
 * `database`: it has no such database. `full`: it has no connection left. `starting`: it starts, or shuts down.
 */
export type FailureKind =
  'refused' | 'name' | 'timeout' | 'unreachable' | 'tls' | 'login' | 'database' | 'full' | 'starting'

/** An event of the driver's own, passed on as the pool's `driver` event. Plain data only: no connection, no secret. */
export interface DriverEvent { readonly name: string, readonly [detail: string]: unknown }

/**
 * What failed outside of all connections that the pool knows, and no caller is told of: an `error` event of the pool.
 * `listener`: a subscriber's function. `subscription`: the connection of the subscriptions.
 */
export type ConnectorError = (error: unknown, phase: 'listener' | 'subscription') => void

/**
 * How far a transaction is kept from what others do at the same time: the SQL standard's four levels, and MongoDB's
 * 'snapshot'.
 */
export type Isolation = 'read uncommitted' | 'read committed' | 'repeatable read' | 'serializable' | 'snapshot'

/** How a transaction begins. What is left out is as the database has it. */
export interface TransactionOptions {
  isolation?: Isolation | undefined
  /** It may only read. Default false. */
  readOnly?: boolean | undefined
}

/**
 * An open transaction, or a savepoint in one. Its methods are called one after the other, never two at the same time.
 */
export interface Transaction<C> {
  /** What works inside of it: the connection itself; for MongoDB a `Db` that is bound to the session. */
  readonly connection: C
  /**
   * Whether only the server knows what became of the commit: COMMIT was written, and its answer has not come, or never
   * will. False: it was not written yet, or the server has answered. The pool reads it, with no I/O, when a commit
   * rejects and when it is given up (its deadline, the end of its connection): true makes `FST_POOL_COMMIT_UNKNOWN` of
   * it. Behind `destroy` COMMIT must not be written any more.
   *
   * Left out, a commit counts as written from its call on, and as unanswered where it rejects and the connection is
   * dead. Not read of a savepoint.
   */
  readonly inDoubt?: boolean
  /**
   * Resolves only where all of it, and nothing else, was committed. Rejects with the database's own error, or with
   * `FST_POOL_TRANSACTION_ENDED` where it was no longer open (the database had ended it after an error, or somebody's
   * own COMMIT). `rollback` comes after a rejection, unless it is in doubt: then the connection is destroyed.
   */
  commit (): Promise<void>
  /** Undoes it. Does nothing where it is not open any more. A rejection destroys the connection. */
  rollback (): Promise<void>
  /**
   * Begins a transaction within it, where the database has such.
   *
   * @param name unique among those that are open; letters, digits and '_'
   */
  savepoint? (name: string): Promise<Transaction<C>>
}

/** The transactions of a database. */
export interface Transactions<C> {
  /** The levels that it has. */
  readonly isolation: readonly Isolation[]
  /** Whether `readOnly` can be asked for. */
  readonly readOnly: boolean
  /**
   * Begins one, where none is open. After a rejection none is open. Past the deadline, or when the connection is
   * destroyed meanwhile, `signal` aborts, nobody waits for this any more, and the pool destroys the connection. A
   * function that does not declare `signal` (`begin.length < 3`) gets none.
   */
  begin (connection: C, options: TransactionOptions, signal: AbortSignal): Promise<Transaction<C>>
  /**
   * Whether a transaction that ended with this error can be run again from its beginning: a serialization failure, a
   * deadlock.
   */
  isTransient (error: unknown): boolean
}

/** What a server says of itself, to a connection of its own. */
export interface ServerState {
  /** 'replica': it takes no writes now. */
  readonly role: Role
  /** Of a replica: how far behind its primary, in ms. Infinity: it does not follow one. */
  readonly lag?: number
  /**
   * Where the lag can't be told in time: the position in the stream of changes, in bytes. The lag is what is missing to
   * the primary's.
   */
  readonly offset?: number
}

/** How many connections a server allows to this user, by the lowest of its limits. */
export interface Capacity {
  readonly allowed: number
  /** How many there are now that count towards that limit, this app's included. */
  readonly inUse: number
  /** How many are this app's, those of its other processes included, where that is known. */
  readonly ours?: number
  /** From how many hosts those come, where that is known. */
  readonly hosts?: number
}

/** What a connection is doing now. */
export interface Activity {
  /** What the server calls the connection: a process or thread id. */
  readonly id?: string | number
  /** 'query': a command was sent, and its answer is not complete. */
  readonly doing: 'query' | 'idle in transaction' | 'idle'
  /** Since when, in ms of `performance.now()`, where that is known. */
  readonly since?: number
}

/**
 * All that the pool asks of a database. Only `create` and `destroy` are needed.
 *
 * No method of one connection is called while another of the same connection is under way, but for `isBroken`, and for
 * `destroy` when the other is past its deadline. `signal` aborts at the deadline, and when the pool no longer wants the
 * answer; a connector that ignores it is waited for no longer than that, and what it delivers too late is destroyed.
 */
export interface Connector<C = unknown> {
  /** What the connections speak to, as in OpenTelemetry's `db.system.name`: 'mongodb', 'redis', 'ldap', ... */
  readonly system: string
  /** Which of several drivers it is on, for the log. */
  readonly driver?: string
  /** How many connections there can be at most, whatever the options say. Default: no such limit. */
  readonly max?: number
  /**
   * Texts that no error, event or log line may show, besides those of the pool's `url` and `connection`. Another list
   * where there are others.
   */
  readonly secrets?: readonly string[]
  /** Opens one connection, ready for use. Rejects on failure; must honour `signal`. */
  create (signal: AbortSignal): Promise<C>
  /**
   * Closes it. Called exactly once for each connection that `create` delivered. Resolves when the server has let go.
   * May reject: the pool reports and forgets.
   *
   * `signal`, which the pool always gives, aborts at `destroyTimeout`: then the server must not be waited for any more.
   * It is aborted from the start where the server is known not to answer. A connection that is not closed 60 s later
   * does not count any more.
   */
  destroy (connection: C, reason: DestroyReason, signal?: AbortSignal): Promise<void> | void
  /**
   * A round trip, before lending a connection that was idle for longer than `validateAfter`. May wait, up to
   * `validateTimeout`.
   */
  validate? (connection: C, signal: AbortSignal): Promise<boolean>
  /**
   * No I/O, must not wait. Called at every return and before every loan, and where a commit rejects that does not tell
   * whether it is in doubt.
   */
  isBroken? (connection: C): boolean
  /**
   * No waiting. Called before every loan: `undefined`, or what is in the way of it, outside of the connection and of
   * the pool ("the lock of the file, which another process has"). Then callers wait, it is asked again up to 25 ms
   * later, and whoever waits in vain is told. Only where somebody waits is it asked again. Also called where a
   * transaction, or a savepoint, did not begin in time: whoever began it is told, too.
   */
  obstacle? (connection: C): string | undefined
  /**
   * Makes it clean for the next borrower. `undefined`: it is clean now, no round trip was needed. A promise: the
   * connection stays `used` until it settles, up to `resetTimeout`; no response waits for it. A rejection destroys the
   * connection. `signal` is only given to a function that declares it (its `length` is 2): to make one costs about 1
   * us.
   */
  reset? (connection: C, signal: AbortSignal): Promise<void> | undefined
  /**
   * Where the driver tells of a death between loans. Called once per connection; an idle connection that dies is
   * evicted at once.
   */
  onDeath? (connection: C, listener: (error?: Error) => void): void
  /**
   * Where the driver has events of its own. Called once, when the pool is made. `failed` is for what no caller is told
   * of.
   */
  onDriverEvent? (listener: (event: DriverEvent) => void, failed?: ConnectorError): void
  /**
   * Whether what failed with this error may succeed on another connection, a moment later: its server went away, or
   * takes no writes any more.
   */
  isTransient? (error: unknown): boolean
  /**
   * Whether `create` would fail again with this error, however often it is tried: a refused login, a database that does
   * not exist. Whoever opens the pool is told at once, and the next tries come slowly, up to 30 s apart. Where `url` or
   * `connection` is a function, it is asked once more before that.
   */
  isPermanent? (error: unknown): boolean
  /**
   * Whether a connection that died of this was ended by the server because it was idle for too long, as the server
   * says: that is no sign of trouble. Where there is no such function, every death is.
   */
  isIdleTimeout? (error: unknown): boolean
  /**
   * Why `create` failed, as far as the server's own answer tells: errors and the log then say what to do. Node's codes
   * (ECONNREFUSED, ...) are known without it.
   */
  kindOf? (error: unknown): FailureKind | undefined
  /** What the connection is doing now. No I/O, must not wait. undefined: the driver does not say. */
  describe? (connection: C): Activity | undefined
  /**
   * What `pool.execute(method, ...)` calls on a connection; undefined: there is no such call. Default: the connection's
   * own method of that name.
   */
  call? (connection: C, method: string): ((...args: unknown[]) => unknown) | undefined
  /**
   * No I/O, must not wait. Whether the connection keeps the process alive, as Node's `ref` and `unref` do: `false`
   * while the pool is at rest. Default: what the driver does.
   */
  ref? (connection: C, keepsAlive: boolean): void
  /** Asks the server what it is: for pools over several targets. A round trip, on an idle or a new connection. */
  inspect? (connection: C, signal: AbortSignal): Promise<ServerState>
  /**
   * Asks the server how many connections it allows. Round trips, on an idle connection; asked once, behind the start,
   * and only where the log tells of it. undefined: it can't be known, as behind a proxy that shares out connections.
   */
  capacity? (connection: C, signal: AbortSignal): Promise<Capacity | undefined>
  /** The numbers of what listens to this server outside of the pool's connections. undefined: there was nothing yet. */
  readonly subscriptions?: SubscriptionStats | undefined
  /**
   * In a pool over several targets: the target of `to` is the primary now. What listens to this one moves there. Called
   * for all others each time.
   */
  handOver? (to: Connector<C>): void
  /** Where the database has transactions. */
  readonly transactions?: Transactions<C>
  /** Where connections that only read are others than those that write: what makes those. */
  readonly replica?: Connector<C>
  /** What all connections share, and the connector made. Called once, when the pool has closed its last connection. */
  close? (): Promise<void> | void
}
