import mongooseModule from 'mongoose'
import type { Connection, Mongoose } from 'mongoose'
import type { WrapInfo } from '../../types/pool.js'
import { PoolError } from '../engine/errors.js'
import { unknownSystem } from './begin.js'

export interface MongooseOptions {
  /** Another copy of Mongoose than the one that `import 'mongoose'` gives. */
  readonly mongoose?: Mongoose
  /**
   * Called with each connection of Mongoose that is made: for its models and plugins. There is one for each client and
   * database.
   */
  readonly setUp?: (connection: Connection) => void
}

/** The part of the driver's `Db` that is used here. */
interface Db { readonly client: object, readonly databaseName: string }

/**
 * For the option `wrap`: `request.<name>` is a Mongoose connection over the pool's MongoClient. It is the same one for
 * all requests, since the sockets are the driver's. The pool needs `driver: mongoose.mongo`: Mongoose works with its
 * own copy of the driver only.
 *
 * Transactions are Mongoose's: `request.db.transaction(fn)`. Each has a session of its own, so they may run side by
 * side. A route's `transaction`, and `request.transaction`, are refused with `FST_POOL_NOT_SUPPORTED`: Mongoose's
 * models would write outside of it.
 *
 * @throws `FST_POOL_BAD_OPTIONS` when the first connection is made (at `register`, unless `startup` says later), on
 * another backend or with another copy of the driver
 */
export function mongoose (options: MongooseOptions = {}): (connection: unknown, info: WrapInfo) => Connection {
  const { mongoose = mongooseModule, setUp } = options
  const connections = new WeakMap<object, Map<string, Connection>>()
  return (connection, info) => {
    if (info.system !== 'mongodb') throw unknownSystem('mongoose', info, ['mongodb'])
    const { client, databaseName } = connection as Db
    if (info.inTransaction) {
      throw new PoolError('FST_POOL_NOT_SUPPORTED',
        `pool '${info.pool}' gives Mongoose connections, whose models would write outside of this ` +
          `transaction: use Mongoose's own, request.${info.pool}.transaction(fn), on a route without transaction`)
    }
    if (!(client instanceof mongoose.mongo.MongoClient)) {
      throw new PoolError('FST_POOL_BAD_OPTIONS',
        "option wrap is mongoose(), which needs Mongoose's own copy of the driver: " +
          'give the pool driver: mongoose.mongo')
    }
    let known = connections.get(client)
    if (known === undefined) connections.set(client, known = new Map())
    let made = known.get(databaseName)
    if (made === undefined) {
      known.set(databaseName, made = mongoose.createConnection().setClient(client).useDb(databaseName))
      setUp?.(made)
    }
    return made
  }
}

export default mongoose
