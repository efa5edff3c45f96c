import type { FastifyBaseLogger } from 'fastify'
import type { PoolFace, PostgresConnector } from 'fastify-pool'
import type { Client } from 'pg'

/** What is to be sent. */
export interface Message { readonly id: string, readonly topic: string, readonly payload: unknown }

/** Resolves when it has arrived. It may be called twice with one id: the receiver has to know ids that it has had. */
export type Send = (message: Message) => Promise<void>

const channel = 'outbox'

/** Several processes may start at once: `if not exists` alone lets two of them create the same table. */
export async function createTables (db: Client): Promise<void> {
  await db.query(`
    select pg_advisory_xact_lock(hashtext('create outbox'));
    create table if not exists orders (
      id bigint generated always as identity primary key, item text not null, quantity int not null check (quantity > 0)
    );
    create table if not exists outbox (
      id bigint generated always as identity primary key, topic text not null, payload jsonb not null,
      attempts int not null default 0, due timestamptz not null default now()
    );
    create index if not exists outbox_due on outbox (due, id)`)
}

/** Writes a message in the transaction that is open on `db`: it is sent if, and only if, that is committed. */
export async function put (db: Client, topic: string, payload: object): Promise<void> {
  // PostgreSQL delivers a notification at the commit of its transaction, and none of one that is rolled back.
  await db.query(
    `with added as (insert into outbox (topic, payload) values ($1, $2) returning id)
     select pg_notify('${channel}', id::text) from added`, [topic, JSON.stringify(payload)])
}

export interface OutboxOptions {
  readonly pool: PoolFace<Client, PostgresConnector>
  readonly send: Send
  readonly log: FastifyBaseLogger
  /** In ms: how often to look without having been told, for what an outage has hidden, and for what is due again. */
  readonly poll: number
}

/**
 * Sends what is in the outbox, one message after the other, each in a transaction of its own that locks its row: so
 * workers of several processes share the work. A message is deleted once it has arrived. A process that dies in between
 * leaves it to another one: each message arrives at least once.
 */
export class Outbox {
  readonly #options: OutboxOptions
  #stopping = false
  /** Somebody said that there is something, and the table was not read since. */
  #woken = false
  /** Ends the pause between two readings. */
  #resume: (() => void) | undefined
  #unlisten: (() => Promise<void>) | undefined
  #running: Promise<void> | undefined

  constructor (options: OutboxOptions) { this.#options = options }

  /** Resolves once notifications come. What is there already is sent, too. */
  async start (): Promise<void> {
    // Listens before it reads for the first time: what is committed in between is notified.
    const wake = () => { this.wake() }
    this.#unlisten = await this.#options.pool.backend.listen(channel, wake, { onReconnect: wake })
    this.#running = this.#run()
  }

  /** There is something to send. */
  wake (): void {
    this.#woken = true
    this.#resume?.()
  }

  /** Resolves when what is being sent has been, and the worker needs the pool no more. */
  async stop (): Promise<void> {
    this.#stopping = true
    this.#options.log.info('the outbox ends')
    this.#resume?.()
    await this.#running
    await this.#unlisten?.()
  }

  async #run (): Promise<void> {
    const { log } = this.#options
    while (!this.#stopping) {
      this.#woken = false
      try {
        let isMore = true
        while (isMore && !this.#stopping) isMore = await this.#next()
      } catch (err) {
        log.error({ err }, 'the outbox could not be read, or a message not be deleted')
      }
      await this.#pause()
    }
  }

  async #pause (): Promise<void> {
    if (this.#woken || this.#stopping) return
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, this.#options.poll)
      this.#resume = () => {
        clearTimeout(timer)
        resolve()
      }
    })
    this.#resume = undefined
  }

  /** @returns whether there was one */
  async #next (): Promise<boolean> {
    const { pool, send, log } = this.#options
    return await pool.transaction(async (db) => {
      // Rows that other workers are sending are skipped, not waited for.
      const { rows: [message] } = await db.query<Message>(
        `select id, topic, payload from outbox where due <= now() order by due, id limit 1
         for update skip locked`)
      if (message === undefined) return false
      try {
        await send(message)
      } catch (err) {
        log.warn({ err, id: message.id, topic: message.topic }, 'not sent: it is tried again')
        await db.query(
          `update outbox set attempts = attempts + 1, due = now() + 2 ^ least(attempts, 8) * interval '1 second'
           where id = $1`, [message.id])
        return true
      }
      await db.query('delete from outbox where id = $1', [message.id])
      return true
    })
  }
}
