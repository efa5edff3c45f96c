import type { MongoClientOptions } from 'mongodb'
import { badOption, PoolError, scrub } from '../../engine/errors.js'
import { secretsOf } from '../../engine/secrets.js'
import type { MongoClient } from '../../../types/drivers.js'
import type { Address } from '../../../types/options.js'
import { refuseNextTo, type AddressNow } from '../shared/address.js'
import { appNameOf } from '../shared/app-name.js'
import type { DriverKind } from '../shared/driver.js'

export interface MongoOptions {
  /**
   * `mongodb://` or `mongodb+srv://`. Its query may have any option of the driver's that `connection` may have. A
   * function is called by `mongodb()` itself, for the first client, and then at each create.
   */
  url?: Address['url']
  /** Instead of `url`. Default 'localhost'. */
  host?: string
  /** With `host`. Default 27017. */
  port?: number
  /** Default: the one in the URL's path, else the driver's own ('test'). */
  database?: string
  /**
   * Options of the driver's `MongoClient`, passed on as they are: `tls`, `authSource`, `replicaSet`, `readPreference`,
   * ... A function is called when `url` is.
   */
  connection?: Address['connection']
  /** The most sockets per server and client; the driver's monitors come on top. Default 10. */
  max?: number
  /**
   * By which name the server shows these connections, unless `url` or `connection` says another one: the driver's
   * `appName`. At most 128 characters of ASCII. Default: the name in the app's package.json.
   */
  appName?: string
  /** How long an operation waits for a socket, and at most for a server, in ms. Default 5000. */
  acquireTimeout?: number
  /**
   * The module mongodb, `mongoose.mongo` or @fastify/mongodb: for bundles, and copies of one's own. Default: the one
   * that @fastify/mongodb uses.
   */
  driver?: unknown
  /**
   * How long opening one socket may take, in ms, where neither `url` nor `connection` says `connectTimeoutMS`. Default
   * 3000.
   */
  connectTimeout?: number
  /**
   * A client that the app made: it is used as it is and never closed. Of the options above only `database` goes with
   * it.
   */
  client?: MongoClient
}

/** What is used of the module mongodb. */
interface Driver {
  readonly MongoClient: new (url: string, options?: object) => MongoClient
  readonly ObjectId?: unknown
}

export const mongoDriver: DriverKind<Driver> = {
  backend: 'mongodb',
  name: 'mongodb',
  via: '@fastify/mongodb',
  expected: 'the module mongodb, mongoose.mongo or @fastify/mongodb',
  read (module) {
    // @fastify/mongodb exports its copy of the driver as `mongodb`.
    const driver = (module.MongoClient === undefined ? module.mongodb : module) as Partial<Driver> | undefined
    const { prototype } = (driver?.MongoClient ?? {}) as { prototype?: Partial<MongoClient> }
    return typeof prototype?.startSession === 'function' ? driver as Driver : undefined
  },
}

/** The driver's options that the pool sets, in lower case, and the pool's option for each. */
const reserved: ReadonlyMap<string, string> = new Map([
  ['maxpoolsize', 'max'], ['minpoolsize', 'min'], ['maxconnecting', 'maxConnecting'],
  ['waitqueuetimeoutms', 'acquireTimeout'],
])

export function makeClient ({ MongoClient }: Driver, options: MongoOptions, address: AddressNow): MongoClient {
  const { host, port, max = 10, acquireTimeout = 5000, connectTimeout = 3000 } = options
  const { connection } = address
  const url = urlOf(address.url, host, port)
  const inUrl = [...new URLSearchParams(/\?([^#]*)/.exec(url)?.[1] ?? '')]
  for (const key of Object.keys(connection)) {
    const ours = reserved.get(key.toLowerCase())
    if (ours !== undefined) {
      throw badOption(`connection.${key}`, connection[key], `nothing there: it is set from the pool's option ${ours}`)
    }
  }
  for (const [key] of inUrl) {
    const ours = reserved.get(key.toLowerCase())
    if (ours !== undefined) {
      throw badOption('url', url, `a URL without ${key}: it is set from the pool's option ${ours}`)
    }
  }
  // The driver ignores the case of option names, and `connection` overrides the URL.
  const isNamed = (name: string) => ([key]: readonly [string, unknown]) => key.toLowerCase() === name.toLowerCase()
  const all: Array<[string, unknown]> = [...inUrl, ...Object.entries(connection)]
  const said = (name: string) => all.findLast(isNamed(name))?.[1]
  const selection = Number(said('serverSelectionTimeoutMS') ?? acquireTimeout)
  try {
    return new MongoClient(url, {
      ...Object.fromEntries(Object.entries(connection).filter((one) => !isNamed('serverSelectionTimeoutMS')(one))),
      ...said('appName') === undefined && { appName: appNameOf(options.appName, { longest: 128 }) },
      ...said('connectTimeoutMS') === undefined && { connectTimeoutMS: connectTimeout },
      maxPoolSize: max,
      // The default of 2 would make requests wait for each other's handshakes.
      maxConnecting: max,
      waitQueueTimeoutMS: acquireTimeout,
      // To the driver 0 means for ever.
      serverSelectionTimeoutMS: selection > 0 ? Math.min(selection, acquireTimeout) : acquireTimeout,
    } satisfies MongoClientOptions)
  } catch (error) {
    if (!accepts(() => new MongoClient(url))) {
      // What the driver says of a bad URL may show parts of it.
      throw badOption('url', url, 'a MongoDB URL ' +
        '(mongodb:// or mongodb+srv://, user and password percent-encoded, options known to the driver)')
    }
    const cause = scrub(error, secretsOf(address))
    throw new PoolError('FST_POOL_BAD_OPTIONS',
      `option connection is not what the MongoDB driver takes: ${cause.message}`, { cause })
  }
}

function accepts (make: () => unknown): boolean {
  try {
    make()
    return true
  } catch {
    // Whether it throws is the question.
    return false
  }
}

/** Whether there is an `@` that neither ends the user and password nor stands in the value of an option. */
function isMisread (url: string): boolean {
  const [, authority = '', rest = ''] = /^[^/]*\/\/([^/?#]*)(.*)$/s.exec(url) ?? []
  const [before, ...more] = rest.split('@')
  if (authority.split('@').length > 2) return true
  const option = before!.slice(Math.max(before!.indexOf('?'), before!.lastIndexOf('&')) + 1)
  return more.length > 0 && !(before!.includes('?') && option.includes('='))
}

function urlOf (url: string | undefined, host: string | undefined, port: number | undefined): string {
  if (url !== undefined) {
    refuseNextTo('a url', { host, port })
    // The driver would take a part of such a password for a host, and show it in errors and events.
    if (isMisread(url)) throw badOption('url', url, 'a MongoDB URL whose user and password are percent-encoded')
    return url
  }
  if (host === undefined && port === undefined) throw badOption('url', undefined, 'a MongoDB URL, or host and port')
  const name = host ?? 'localhost'
  return `mongodb://${name.includes(':') && !name.startsWith('[') ? `[${name}]` : name}:${port ?? 27017}/`
}
