// Messages that a server sends by itself: Redis' pub/sub, PostgreSQL's notifications.

/** Ends one subscription. Resolves when the server knows, at once during an outage. Never rejects. */
export type Unsubscribe = () => Promise<void>

export interface SubscribeOptions {
  /**
   * Called when the server sends this channel again after an outage. What was sent meanwhile is lost: read again what
   * the messages are about.
   */
  onReconnect?: (() => unknown) | undefined
  /** Ends the subscription when it aborts. */
  signal?: AbortSignal | undefined
}

export interface MessagesOptions extends SubscribeOptions {
  /** How many messages may wait to be read. One more drops the oldest. At least 1. Default 1000. */
  limit?: number | undefined
}

/** A message of an iterator. */
export type Queued<M> = M & {
  /** How many messages were dropped right before this one, since the iterator's reader was too slow. */
  readonly dropped: number
}

/**
 * The messages of one subscription, for one reader. It subscribes at once, so what comes before the first `next()` is
 * kept, up to `limit`. It ends (`done`) when its `signal` aborts, when the reader leaves the loop, and when the pool is
 * closed; the last lets the reader have what is there already. An outage does not end it.
 */
export interface Messages<M> extends AsyncIterable<Queued<M>> {
  /** How many messages were dropped altogether. */
  readonly dropped: number
  /**
   * Resolves when the server sends the channel.
   *
   * @throws what `subscribe` and `listen` throw with a callback. So does `next()`, if nobody has called this
   */
  ready (): Promise<void>
  next (): Promise<IteratorResult<Queued<M>, undefined>>
  /** Ends the subscription. */
  return (): Promise<IteratorReturnResult<undefined>>
  [Symbol.asyncIterator] (): this
  [Symbol.asyncDispose] (): Promise<void>
}

/**
 * What to subscribe to: a channel by its name, all whose names match a pattern (`news.*`), or a shard channel of Redis
 * 7, which in a cluster only the nodes of its slot know (`SPUBLISH`).
 */
export type RedisChannel = string | { readonly pattern: string } | { readonly shard: string }

export interface RedisMessage {
  readonly message: string
  /** The channel that it was published on. */
  readonly channel: string
}

/** Of what a listener throws, or rejects with, the pool's listeners of `error` are told. */
export type RedisListener = (message: string, channel: string) => unknown

/** What Redis' connectors can besides. */
export interface RedisPubSub {
  /**
   * Calls `fn` for each message of a channel. All subscriptions share one connection outside of the pool's `max`: made
   * with the first, made again after an outage (with the pool's `backoff`), closed with the last, or with the pool.
   * Shard channels share another one; in a cluster one for each node that has some. Messages are read as UTF-8.
   *
   * The client's `keyPrefix` is put before the names of shard channels, as ioredis does for `spublish`.
   *
   * @returns when the server sends the channel: what ends this subscription
   * @throws `FST_POOL_CONNECT_FAILED`, `FST_POOL_CLOSED`, `FST_POOL_ABORTED`, `FST_POOL_BAD_OPTIONS`; the server's own
   * error where it refuses the channel (`NOPERM`)
   */
  subscribe (channel: RedisChannel, fn: RedisListener, options?: SubscribeOptions): Promise<Unsubscribe>
  /**
   * The messages of a channel, to be read by `for await`.
   *
   * @throws `FST_POOL_BAD_OPTIONS`; all else comes from `ready()` or `next()`
   */
  subscribe (channel: RedisChannel, options?: MessagesOptions): Messages<RedisMessage>
}

export interface PostgresNotification {
  /** '' where there is none. */
  readonly payload: string
  readonly channel: string
  /** The server's process that notified, as `pg_backend_pid()` told it. */
  readonly processId: number
}

/** Of what a listener throws, or rejects with, the pool's listeners of `error` are told. */
export type NotificationListener =
  (payload: string, channel: string, notification: PostgresNotification) => unknown

/** What PostgreSQL's connector can besides. */
export interface PostgresPubSub {
  /**
   * Calls `fn` for each notification on a channel. All channels share one connection outside of the pool's `max`: made
   * with the first, made again after an outage (with the pool's `backoff`), closed with the last, or with the pool.
   *
   * @param channel the exact name, as in `LISTEN "Name"`: `NOTIFY Name` without quotes notifies 'name'
   * @returns when the server listens: what ends this subscription
   * @throws `FST_POOL_CONNECT_FAILED`, `FST_POOL_CLOSED`, `FST_POOL_ABORTED`, `FST_POOL_BAD_OPTIONS`; the server's own
   * error where it refuses
   */
  listen (channel: string, fn: NotificationListener, options?: SubscribeOptions): Promise<Unsubscribe>
  /**
   * The notifications on a channel, to be read by `for await`.
   *
   * @throws `FST_POOL_BAD_OPTIONS`; all else comes from `ready()` or `next()`
   */
  listen (channel: string, options?: MessagesOptions): Messages<PostgresNotification>
}

/** Of a pool's subscriptions. Left out while there was none. */
export interface SubscriptionStats {
  /** Callbacks and iterators. */
  readonly subscribers: number
  /** Channels, patterns and shard channels. */
  readonly channels: number
  /** Those of `channels` that the server does not send now: an outage, or one that has just begun. */
  readonly missing: number
  /** Connections that only receive; they do not count towards `max`. */
  readonly connections: number
  /** Messages that came; one for several subscribers counts once. */
  readonly received: number
  /** Messages that iterators dropped, since their readers were too slow. */
  readonly dropped: number
  /** How often channels were subscribed to again after an outage. */
  readonly reconnects: number
}
