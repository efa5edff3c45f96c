// What `fastify-pool/testing` speaks of.

/** What a test runner gives to a test: node:test's and tap's `t` as they are, Vitest's `{ after: onTestFinished }`. */
export interface TestContext {
  /** Calls `fn` when the test has ended, and waits for it. */
  after (fn: () => Promise<void>): unknown
}

/** How `loseCommit` loses a commit. */
export interface LostCommit {
  /** What was to be committed is stored all the same. Default false: it is not. */
  readonly stored?: boolean | undefined
}

/**
 * Faults of one pool, for tests of what an app does then. Each call asks for one fault more, and each fault happens
 * once. `using` ends them with their block.
 */
export interface Faults {
  /**
   * The next `n` acquires fail at once with `FST_POOL_ACQUIRE_TIMEOUT` (503), as if `acquireTimeout` had passed.
   * `tryAcquire` returns null meanwhile. The event `timeout` tells of each.
   *
   * @param n default 1
   * @throws `FST_POOL_BAD_OPTIONS`
   */
  timeout (n?: number): void
  /**
   * The connection that is lent next dies as soon as it is lent: its socket is destroyed, and the driver's own errors
   * come out of it. A connection that has no socket of its own (SQLite, MongoDB, fakes, and whatever is lent within
   * `rollbackEach`) fails with the code ECONNRESET instead. The pool destroys it when it comes back.
   */
  die (): void
  /**
   * The next COMMIT is refused, and the transaction rolled back.
   *
   * @param error what the database says. Default: an error without a code
   */
  failCommit (error?: Error): void
  /** The connection ends behind the next COMMIT, before the answer: `FST_POOL_COMMIT_UNKNOWN` (500). */
  loseCommit (options?: LostCommit): void
  /** Takes back the faults that have not happened yet, and lets the pool go on as it is. */
  restore (): void
  [Symbol.dispose] (): void
}

/** The options of a pool that connects to nothing, and what became of its connections. */
export interface FakePool<C> {
  /** The pool's option `connector`. */
  readonly connector: import('./connector.js').Connector<C>
  readonly onAcquire: () => void
  readonly onRelease: () => void
  /** The connections that were made, the oldest first. Of one object, it is the same each time. */
  readonly connections: readonly C[]
  /** How often a connection was made. */
  readonly created: number
  /** How often one was lent. */
  readonly acquired: number
  /** How often one was given back; those that were destroyed instead are in `destroyed`. */
  readonly released: number
  /** How often one was closed, whatever the reason. */
  readonly destroyed: number
  /** How many transactions were committed, savepoints not counted. */
  readonly committed: number
  /** How many transactions were rolled back, savepoints not counted. */
  readonly rolledBack: number
}
