/** What went wrong, for programs. A code is never reused for something else. */
export type PoolErrorCode =
  /** No connection within the acquire's deadline. 503. */
  | 'FST_POOL_ACQUIRE_TIMEOUT'
  /** `maxPending` callers wait already. 503. */
  | 'FST_POOL_QUEUE_FULL'
  /** The line's recent pace says that the acquire's deadline will pass before its turn. 503. */
  | 'FST_POOL_OVERLOADED'
  /**
   * There is no connection, and creates have failed so often that they are only tried now and then; the cause says why.
   * 503.
   */
  | 'FST_POOL_CIRCUIT_OPEN'
  /** Connections can't be made; the cause says why. At once where that is for good (a refused login). 503. */
  | 'FST_POOL_CONNECT_FAILED'
  /**
   * Whoever holds the connections waits for another one of the same pool, this caller included: none of them would ever
   * get it.
   */
  | 'FST_POOL_DEADLOCK'
  /** The pool closes or is closed. 503. */
  | 'FST_POOL_CLOSED'
  /** The caller's signal aborted; the cause is its reason. */
  | 'FST_POOL_ABORTED'
  /** An option is unknown, of the wrong type or out of range. */
  | 'FST_POOL_BAD_OPTIONS'
  /** A pool of that name exists already. */
  | 'FST_POOL_DUPLICATE_NAME'
  /** There is no pool of that name. */
  | 'FST_POOL_NOT_FOUND'
  /** The backend's driver is not installed. */
  | 'FST_POOL_MISSING_DRIVER'
  /** The request has no lease on that pool. */
  | 'FST_POOL_NOT_LEASED'
  /** The lease has ended. */
  | 'FST_POOL_LEASE_RELEASED'
  /**
   * `reset` failed or took too long; the connection was destroyed. Only in `error` events; with the mode 'joined' of
   * PostgreSQL also what the next borrower's first statements reject with. None of them was run, unless the server did
   * not answer in time, and could not be asked to cancel either.
   */
  | 'FST_POOL_RESET_FAILED'
  /**
   * The database, or this connection of it, can't do what was asked: no transactions, no savepoints, a write on a
   * connection that only reads.
   */
  | 'FST_POOL_NOT_SUPPORTED'
  /** A transaction was no longer open when it should have been committed. The cause says why, where that is known. */
  | 'FST_POOL_TRANSACTION_ENDED'
  /**
   * A commit was not sent within `commitTimeout`, since something before it had not ended: nothing of the transaction
   * is stored. 500.
   */
  | 'FST_POOL_COMMIT_TIMEOUT'
  /**
   * A commit was sent, and no answer came: nobody knows whether it is stored. Never run again by us. The cause says
   * why, where that is known. 500.
   */
  | 'FST_POOL_COMMIT_UNKNOWN'
