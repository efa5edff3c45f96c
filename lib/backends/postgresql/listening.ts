import { badOption } from '../../engine/errors.js'
import type { PostgresNotification } from '../../../types/messages.js'
import type { Ear, Topic, Wire } from '../shared/listening.js'
import { quote } from '../shared/sql.js'
import type { PostgresSession } from './session.js'

/** @throws `FST_POOL_BAD_OPTIONS` */
export function topicOf (channel: unknown): Topic {
  // PostgreSQL cuts longer names off, and the listener would get another channel's notifications. NUL ends a text
  // there.
  if (typeof channel !== 'string' || channel === '' || Buffer.byteLength(channel) > 63 || channel.includes('\0')) {
    throw badOption('channel', channel, 'the name of a channel: 1 to 63 bytes')
  }
  return { key: channel, name: channel }
}

/** The connection that listens. Its keys are the channels. */
export class PostgresWire implements Wire {
  readonly #session: PostgresSession

  constructor (session: PostgresSession, ear: Ear<PostgresNotification>) {
    this.#session = session
    session.connection.on('notification', ({ channel, payload = '', processId }) => {
      ear.heard(channel, Object.freeze({ payload, channel, processId }))
    })
    session.onDeath((error) => { ear.lost(error) })
  }

  async listen (keys: readonly string[]): Promise<ReadonlyMap<string, unknown>> {
    try {
      await this.#session.connection.query(keys.map((channel) => `LISTEN ${quote(channel)}`).join('; '))
      return new Map()
    } catch (error) {
      // The server's own: it listens to none of them, and the connection works.
      const { severity } = error as { severity?: string }
      if (severity !== 'ERROR' || this.#session.broken) throw error
      return new Map(keys.map((channel) => [channel, error]))
    }
  }

  async unlisten (keys: readonly string[]): Promise<void> {
    await this.#session.connection.query(keys.map((channel) => `UNLISTEN ${quote(channel)}`).join('; '))
  }

  async ping (): Promise<void> {
    await this.#session.connection.query('')
  }

  end (): Promise<void> | void {
    return this.#session.end()
  }
}
