/**
 * A protocol double of MongoDB, steerable from a test. It is NOT MongoDB: it speaks the wire protocol well enough for
 * the official driver (OP_MSG, the OP_QUERY handshake, SCRAM-SHA-256, streamed hellos), and keeps its data in memory.
 * Use it for what no real server does on demand: stepping down, refusing logins, cutting connections, answering late,
 * answering wrong. A promise about MongoDB itself is worth something only where the same test also runs against a real
 * server.
 *
 * Where it differs from a replica set, knowingly: all members share one store (replication takes no time, nothing is
 * ever rolled back); nobody is elected unless a test says so (`election`, `elect`); collation, text, geo, change
 * streams and most aggregation stages are refused by name, never ignored; a write that meets an open transaction's
 * document waits for that transaction, `maxTimeMS` notwithstanding; a transaction is ended by its session or a
 * step-down only, never by its age.
 */
import { createHash, createHmac, pbkdf2Sync, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:net'
import type { AddressInfo, Server, Socket } from 'node:net'
import { BSON } from 'mongodb'
import { noteServer } from '../support/services.js'
import type { Teardown } from '../support/services.js'

const { Binary, EJSON, Long, ObjectId, Timestamp } = BSON

// --- What a test sees ------------------------------------------------------------------------------------------------

/** A document, as BSON gives it. */
export interface Doc { [field: string]: unknown }

export interface MongoDoubleOptions {
  /** Members of the replica set 'rs'. Default 1. The first is its primary. */
  members?: 1 | 3
  /** One server without a replica set: no transactions, no retryable writes. Default false. */
  standalone?: boolean
  /** With `password`: commands need a login by SCRAM-SHA-256, against any database. Default: none. */
  user?: string
  password?: string
  /**
   * Of each member, monitoring connections included, as on a real server. What comes above it is closed at once.
   * Default: no limit.
   */
  maxConnections?: number
  /** Of the first member. Default: the system's choice. */
  port?: number
  /**
   * How long it takes, in ms, until the next living member is the primary where one stepped down or was killed, and
   * most members live. Default: after a step-down of three no time at all; after a `kill` nobody is elected unless a
   * test does it.
   */
  election?: number
  /**
   * 'stream': drivers hear of a new topology at once. 'poll': only at their next heartbeat, or from a command's error.
   * Default 'stream'.
   */
  monitoring?: 'stream' | 'poll'
}

/**
 * `open`, `peak` and `total` count the connections of the driver's pool: those that log in, or have run something else
 * than hello. The driver's monitors are `monitors` (so is a pooled connection that has not run anything yet, where no
 * login is needed). `all` is the sum.
 */
export interface ConnectionCounts {
  readonly open: number
  readonly peak: number
  readonly total: number
  readonly monitors: number
  /**
   * Monitors that hear of a new topology at once, because their hello is waiting here. A driver begins to listen
   * `minHeartbeatFrequencyMS` (500 ms) after it has connected: wait for it before a step-down, or the driver may be
   * without a server for a whole heartbeat.
   */
  readonly listening: number
  readonly all: number
  /** Closed at once because of `maxConnections`, ever. */
  readonly refused: number
}

export interface Member {
  readonly index: number
  readonly host: string
  readonly port: number
  readonly state: 'primary' | 'secondary' | 'standalone' | 'down'
  readonly connections: ConnectionCounts
  /** Resets (RST) all connections and stops listening. A primary is a primary no more. */
  kill (): Promise<void>
  /**
   * Listens again on the same port, with the same data: as a secondary, or where there is only one member, as what it
   * was.
   */
  restart (): Promise<void>
  /** Still accepts connections and reads, and answers nothing until `resume`. */
  pause (): void
  resume (): void
  /**
   * Resets (RST) all open connections, and goes on listening. As `kill`, resolves when clients of this process have had
   * a turn to see it.
   */
  resetAll (): Promise<void>
}

/** One command as it came in. */
export interface CommandEntry {
  readonly command: string
  readonly db: string
  readonly collection?: string
  /** Index of the member. */
  readonly member: number
  /** Unique in the whole double. What the driver calls `serverConnectionId`. */
  readonly connectionId: number
  /** The session's id in hex. */
  readonly lsid?: string
  readonly txnNumber?: number
  readonly startTransaction?: boolean
  /** `false` inside a transaction. */
  readonly autocommit?: boolean
  /** The whole command; the payloads of a login are left out. */
  readonly body: Doc
}

export interface Selection {
  /** One name, several, or '*' for all but hello. */
  commands: string | readonly string[]
  /** Only these. */
  where?: (entry: CommandEntry) => boolean
}

export interface FailOptions extends Selection {
  /** How often. Default 1. */
  times?: number
  /** Answers with this error, which ends the command's transaction if it is in one. */
  code?: number
  message?: string
  /** Exactly these error labels. Default: those a real server would send. */
  labels?: readonly string[]
  /** Resets the connection instead of answering. */
  closeConnection?: boolean
  /** Waits first, in ms. On its own: late, but no failure. */
  delay?: number
  /** 'after': the command is executed, and only its answer is lost. Default 'before'. */
  when?: 'before' | 'after'
}

export interface Fault {
  /** How many commands it has met. */
  readonly hits: number
  off (): void
}

/** Commands that wait until a test lets them go on. */
export interface Hold {
  /** When the first one has arrived. */
  readonly reached: Promise<void>
  /** How many wait now. Those whose connection has closed are gone, and never executed. */
  readonly waiting: number
  /** Resolves when `count` wait at the same time. */
  arrived (count: number): Promise<void>
  /** Lets all go on, and holds no more. */
  release (): void
}

export interface MongoDouble {
  /** With user and password, where there are any. Its database is `test`. */
  readonly url: string
  readonly members: readonly Member[]
  readonly primary: Member | null
  /** Over all members. */
  readonly connections: ConnectionCounts
  /** Every command but hello, in the order of arrival. Empty it with `log.length = 0`. */
  readonly log: CommandEntry[]
  readonly openTransactions: number
  readonly openCursors: number
  /**
   * The primary becomes a secondary, and all open transactions are aborted. Of three members the next living one is
   * elected in the same moment; a single one stays a secondary until `elect(0)`.
   */
  stepDown (): void
  /** Makes a living member the primary. @throws when it is down. */
  elect (index: number): void
  /** As `stepDown`, but nobody is elected. */
  noPrimary (): void
  /** Resets (RST) all connections of all members. */
  resetAll (): Promise<void>
  failCommand (options: FailOptions): Fault
  /** Every such command takes `ms` longer, until `off()`. */
  delay (command: string, ms: number): Fault
  hold (commands: string | readonly string[] | Selection): Hold
  /** For logins from now on; open connections stay logged in. */
  setPassword (password: string): void
  /** Copies of what is committed, in the order of insertion. */
  documents (db: string, collection: string): Doc[]
  /** Called by the teardown. Nothing stays open. */
  stop (): Promise<void>
}

// --- Errors ----------------------------------------------------------------------------------------------------------

const codeNames = new Map([
  [2, 'BadValue'], [8, 'UnknownError'], [9, 'FailedToParse'], [13, 'Unauthorized'], [14, 'TypeMismatch'],
  [18, 'AuthenticationFailed'],
  [20, 'IllegalOperation'], [26, 'NamespaceNotFound'], [28, 'PathNotViable'], [43, 'CursorNotFound'],
  [48, 'NamespaceExists'],
  [59, 'CommandNotFound'], [66, 'ImmutableField'], [72, 'InvalidOptions'], [91, 'ShutdownInProgress'],
  [112, 'WriteConflict'],
  [117, 'ConflictingOperationInProgress'], [189, 'PrimarySteppedDown'], [217, 'IncompleteTransactionHistory'],
  [225, 'TransactionTooOld'],
  [238, 'NotImplemented'], [251, 'NoSuchTransaction'], [256, 'TransactionCommitted'],
  [263, 'OperationNotSupportedInTransaction'],
  [334, 'MechanismUnavailable'], [10107, 'NotWritablePrimary'], [11000, 'DuplicateKey'],
  [11600, 'InterruptedAtShutdown'],
  [11602, 'InterruptedDueToReplStateChange'], [13435, 'NotPrimaryNoSecondaryOk'], [13436, 'NotPrimaryOrSecondary'],
])
/** The server's role changed: such an answer carries the topology's version. */
const stateChanges: ReadonlySet<number> = new Set([91, 189, 10107, 11600, 11602, 13435, 13436])
const retryable: ReadonlySet<number> = new Set([...stateChanges, 6, 7, 89, 262, 9001])

class CommandError extends Error {
  readonly code: number
  readonly details: Doc

  constructor (code: number, message: string, details: Doc = {}) {
    super(message)
    this.code = code
    this.details = details
  }
}

/** Thrown by a write that meets a document of an open transaction from outside: it has to wait for it. */
class Blocked extends Error {
  readonly holder: View

  constructor (holder: View) {
    super('blocked by an open transaction')
    this.holder = holder
  }
}

/** The labels that a server of wire version 9 and up adds; the driver retries by them, not by the code. */
function labelsOf (code: number, command: string, body: Doc): string[] {
  const ends = command === 'commitTransaction' || command === 'abortTransaction'
  const inTransaction = body.autocommit === false
  if (retryable.has(code) && (ends || (body.txnNumber !== undefined && !inTransaction))) return ['RetryableWriteError']
  if (inTransaction && command === 'commitTransaction' && code === 251) return ['TransientTransactionError']
  if (inTransaction && !ends &&
    (stateChanges.has(code) || [24, 112, 246, 251].includes(code))) return ['TransientTransactionError']
  return []
}

function errorReply (error: CommandError, labels: readonly string[]): Doc {
  return {
    ok: 0,
    errmsg: error.message,
    code: error.code,
    codeName: codeNames.get(error.code) ?? `Location${error.code}`,
    ...error.details,
    errorLabels: labels.length === 0 ? undefined : labels,
  }
}

// --- Values, filters, updates, pipelines -----------------------------------------------------------------------------

interface Signal { readonly promise: Promise<void>, readonly resolve: () => void }

function signal (): Signal {
  let resolve = () => {}
  const promise = new Promise<void>((_resolve) => { resolve = _resolve })
  return { promise, resolve }
}

const turn = () => new Promise<void>((resolve) => { setImmediate(resolve) })

function bsonType (value: unknown): string | undefined {
  return typeof value === 'object' && value !== null && '_bsontype' in value ? String(value._bsontype) : undefined
}

function isDoc (value: unknown): value is Doc {
  if (typeof value !== 'object' || value === null) return false
  return !Array.isArray(value) && !(value instanceof Date) && !(value instanceof RegExp) &&
    bsonType(value) === undefined
}

const asDoc = (value: unknown): Doc => isDoc(value) ? value : {}
const asDocs = (value: unknown): Doc[] => Array.isArray(value) ? value.filter(isDoc) : []
const clone = (doc: Doc): Doc => BSON.deserialize(BSON.serialize(doc, { ignoreUndefined: true }))

/** Equal values have equal keys. */
function keyOf (value: unknown): string {
  if (typeof value === 'string') return `s${value}`
  if (typeof value === 'number' || bsonType(value) === 'Long') return `n${String(value)}`
  if (value instanceof ObjectId) return `o${value.toHexString()}`
  return value === undefined ? 'null' : EJSON.stringify(value)
}

const order =
  ['null', 'number', 'string', 'object', 'array', 'Binary', 'ObjectId', 'boolean', 'date', 'Timestamp', 'regexp']

function kindOf (value: unknown): string {
  if (value === undefined || value === null) return 'null'
  if (Array.isArray(value)) return 'array'
  if (value instanceof Date) return 'date'
  if (value instanceof RegExp) return 'regexp'
  const type = bsonType(value) ?? typeof value
  return type === 'Long' || type === 'Double' || type === 'Int32' || type === 'bigint' ? 'number' : type
}

function compare (a: unknown, b: unknown): number {
  const kind = kindOf(a)
  if (kind !== kindOf(b)) return order.indexOf(kind) - order.indexOf(kindOf(b))
  if (kind === 'number' || kind === 'date' || kind === 'boolean') return Number(a) - Number(b)
  const [x, y] = kind === 'string' ? [String(a), String(b)] : [keyOf(a), keyOf(b)]
  return x < y ? -1 : x > y ? 1 : 0
}

/** All values that a dotted path reaches; a path runs through the elements of arrays too. */
function valuesAt (value: unknown, path: readonly string[]): unknown[] {
  const [head, ...rest] = path
  if (head === undefined) return [value]
  if (Array.isArray(value)) {
    const indexed = /^\d+$/.test(head) && Number(head) < value.length ? valuesAt(value[Number(head)], rest) : []
    return [...indexed, ...value.filter(isDoc).flatMap((element) => valuesAt(element, path))]
  }
  return isDoc(value) && Object.hasOwn(value, head) ? valuesAt(value[head], rest) : []
}

const valueAt = (doc: Doc, path: string): unknown => valuesAt(doc, path.split('.'))[0]

function setAt (doc: Doc, path: string, value: unknown): void {
  const steps = path.split('.')
  const last = steps.pop() ?? path
  let target = doc
  for (const step of steps) {
    const next = target[step] ?? {}
    if (!isDoc(next) && !Array.isArray(next)) {
      throw new CommandError(28,
      `Cannot create field '${last}' in element {${step}: ${String(next)}}`)
    }
    target[step] = next
    target = next as Doc // or an array, whose elements are reached by their index
  }
  if (value === undefined) delete target[last]
  else target[last] = value
}

function isOperators (value: unknown): value is Doc {
  return isDoc(value) && Object.keys(value)[0]?.startsWith('$') === true
}

function matches (doc: Doc, filter: Doc): boolean {
  return Object.entries(filter).every(([field, condition]) => {
    switch (field) {
      case '$and': return asDocs(condition).every((part) => matches(doc, part))
      case '$or': return asDocs(condition).some((part) => matches(doc, part))
      case '$nor': return !asDocs(condition).some((part) => matches(doc, part))
      case '$comment': return true
    }
    if (field.startsWith('$')) throw new CommandError(2, `unknown top level operator: ${field}`)
    const reached = valuesAt(doc, field.split('.'))
    return isOperators(condition)
      ? Object.entries(condition).every(([operator, operand]) => satisfies(reached, operator, operand, condition))
      : satisfies(reached, '$eq', condition, {})
  })
}

function satisfies (reached: readonly unknown[], operator: string, operand: unknown, all: Doc): boolean {
  const candidates = [...reached, ...reached.filter(Array.isArray).flat()]
  const sameKind = candidates.filter((value) => kindOf(value) === kindOf(operand))
  const compares = (accept: (order: number) => boolean) => sameKind.some((value) => accept(compare(value, operand)))
  switch (operator) {
    case '$eq':
      if (operand instanceof RegExp) return candidates.some((value) => typeof value === 'string' && operand.test(value))
      if (operand === null) return reached.length === 0 || candidates.includes(null)
      return candidates.some((value) => keyOf(value) === keyOf(operand))
    case '$ne': return !satisfies(reached, '$eq', operand, all)
    case '$gt': return compares((order) => order > 0)
    case '$gte': return compares((order) => order >= 0)
    case '$lt': return compares((order) => order < 0)
    case '$lte': return compares((order) => order <= 0)
    case '$in': return Array.isArray(operand) && operand.some((one) => satisfies(reached, '$eq', one, all))
    case '$nin': return !satisfies(reached, '$in', operand, all)
    case '$exists': return (reached.length > 0) === Boolean(operand)
    case '$not': return !Object.entries(asDoc(operand))
      .every(([inner, value]) => satisfies(reached, inner, value, asDoc(operand)))
    case '$regex':
      return satisfies(reached, '$eq',
        operand instanceof RegExp ? operand : new RegExp(String(operand), String(all.$options ?? '')), all)
    case '$options': return true
    default: throw new CommandError(2, `unknown operator: ${operator}`)
  }
}

/** @param inserts whether this makes a document, by an upsert. @returns a changed copy. */
function updated (doc: Doc, update: unknown, inserts: boolean): Doc {
  if (!isDoc(update)) throw new CommandError(9, 'the double knows no update by a pipeline')
  const { _id: id, ...replacement } = update
  if (!isOperators(update)) {
    if (id !== undefined && doc._id !== undefined && keyOf(id) !== keyOf(doc._id)) throw immutableId()
    return { _id: doc._id ?? id ?? new ObjectId(), ...replacement }
  }
  const next = clone(doc)
  for (const [operator, fields] of Object.entries(update)) {
    for (const [path, value] of Object.entries(asDoc(fields))) {
      const before = valueAt(next, path)
      switch (operator) {
        case '$set': setAt(next, path, value); break
        case '$setOnInsert': if (inserts) setAt(next, path, value); break
        case '$unset': setAt(next, path, undefined); break
        case '$inc':
          if (before !== undefined && kindOf(before) !== 'number') {
            throw new CommandError(14,
            `Cannot apply $inc to a non-number: ${path}`)
          }
          setAt(next, path, Number(before ?? 0) + Number(value))
          break
        case '$push':
          if (before !== undefined && !Array.isArray(before)) {
            throw new CommandError(2,
            `The field '${path}' must be an array`)
          }
          setAt(next, path, [...before ?? [], ...each(value)])
          break
        default: throw new CommandError(9, `Unknown modifier: ${operator}`)
      }
    }
  }
  if (doc._id !== undefined && keyOf(next._id) !== keyOf(doc._id)) throw immutableId()
  return next._id === undefined ? { _id: new ObjectId(), ...next } : next
}

/** The operand of $push. */
function each (value: unknown): unknown[] {
  const { $each: many } = asDoc(value)
  return Array.isArray(many) ? many : [value]
}

const immutableId = () => new CommandError(66, "the (immutable) field '_id' was found to have been altered")

/** What an upsert starts from: the equalities of its filter. */
function seedOf (filter: Doc): Doc {
  const seed: Doc = {}
  for (const [field, condition] of Object.entries(filter)) {
    if (field === '$and') Object.assign(seed, ...asDocs(condition).map(seedOf))
    else if (!field.startsWith('$') && !isOperators(condition)) setAt(seed, field, condition)
    else if (isOperators(condition) && '$eq' in condition) setAt(seed, field, condition.$eq)
  }
  return seed
}

function sorted (docs: Doc[], sort: unknown): Doc[] {
  const keys = Object.entries(asDoc(sort))
  if (keys.length === 0) return docs
  return docs.toSorted((a, b) => {
    for (const [path, direction] of keys) {
      const result = compare(valueAt(a, path), valueAt(b, path)) * Number(direction)
      if (result !== 0) return result
    }
    return 0
  })
}

/** Expressions: '$field', '$$ROOT', literals, and objects of these. */
function evaluate (expression: unknown, doc: Doc): unknown {
  if (expression === '$$ROOT') return doc
  if (typeof expression === 'string' && expression.startsWith('$')) return valueAt(doc, expression.slice(1))
  if (!isDoc(expression)) return expression
  if (isOperators(expression)) throw new CommandError(168, `Unrecognized expression '${Object.keys(expression)[0]}'`)
  return Object.fromEntries(Object.entries(expression).map(([field, value]) => [field, evaluate(value, doc)]))
}

function projected (doc: Doc, projection: unknown): Doc {
  const fields = Object.entries(asDoc(projection))
  if (fields.length === 0) return doc
  const excludes = (value: unknown) => value === 0 || value === false
  if (fields.every(([, value]) => excludes(value))) {
    const rest = clone(doc)
    for (const [path] of fields) setAt(rest, path, undefined)
    return rest
  }
  const result: Doc = fields.some(([path]) => path === '_id') ? {} : { _id: doc._id }
  for (const [path, value] of fields) {
    const found = excludes(value)
      ? undefined
      : value === 1 ||
      value === true
        ? valueAt(doc, path)
        : evaluate(value, doc)
    if (found !== undefined) setAt(result, path, found)
  }
  return result
}

function grouped (docs: Doc[], { _id: by, ...fields }: Doc): Doc[] {
  const groups = new Map<string, { id: unknown, docs: Doc[] }>()
  for (const doc of docs) {
    const id = evaluate(by, doc) ?? null
    const group = groups.get(keyOf(id)) ?? { id, docs: [] }
    groups.set(keyOf(id), group)
    group.docs.push(doc)
  }
  return [...groups.values()].map((group) => {
    const result: Doc = { _id: group.id }
    for (const [field, accumulator] of Object.entries(fields)) {
      const [name, expression] = Object.entries(asDoc(accumulator))[0] ?? ['', null]
      const values = group.docs.map((doc) => evaluate(expression, doc))
      const numbers = values.filter((value) => kindOf(value) === 'number').map(Number)
      const sum = numbers.reduce((total, value) => total + value, 0)
      switch (name) {
        case '$sum': result[field] = sum; break
        case '$avg': result[field] = numbers.length === 0 ? null : sum / numbers.length; break
        case '$count': result[field] = group.docs.length; break
        case '$min': result[field] = values.toSorted(compare)[0]; break
        case '$max': result[field] = values.toSorted(compare).at(-1); break
        case '$first': result[field] = values[0]; break
        case '$push': result[field] = values; break
        default: throw new CommandError(15952, `unknown group operator '${name}'`)
      }
    }
    return result
  })
}

function aggregated (docs: Doc[], pipeline: Doc[]): Doc[] {
  return pipeline.reduce((input, stage) => {
    const [name, argument] = Object.entries(stage)[0] ?? ['', null]
    switch (name) {
      case '$match': return input.filter((doc) => matches(doc, asDoc(argument)))
      case '$group': return grouped(input, asDoc(argument))
      case '$sort': return sorted(input, argument)
      case '$limit': return input.slice(0, Number(argument))
      case '$skip': return input.slice(Number(argument))
      case '$count': return input.length === 0 ? [] : [{ [String(argument)]: input.length }]
      case '$project': return input.map((doc) => projected(doc, argument))
      default: throw new CommandError(40324, `Unrecognized pipeline stage name: '${name}'`)
    }
  }, docs)
}

// --- Data and transactions -------------------------------------------------------------------------------------------

interface Index { readonly name: string, readonly key: Doc, readonly unique?: true, readonly sparse?: true }
/** Documents by the key of their _id. A document is never changed, only replaced: whoever has one has it as it was. */
interface Collection { readonly docs: Map<string, Doc>, readonly indexes: Index[] }
/** Of one statement of a retryable write: what a retry is answered with. */
interface StatementResult {
  readonly n: number
  readonly nModified?: number
  readonly upserted?: unknown
  readonly reply?: Doc
}
interface Transaction { readonly view: View, state: 'open' | 'committed' | 'aborted' }
interface Session { txnNumber: number, transaction?: Transaction, executed: Map<number, StatementResult> }

class Store {
  readonly collections = new Map<string, Collection>()
  readonly sessions = new Map<string, Session>()
  /** Documents and unique keys that somebody has written and not yet committed. */
  readonly locks = new Map<string, View>()
  /** Counts commits: the cluster's time. */
  time = 1

  collection (ns: string): Collection {
    const known = this.collections.get(ns)
    if (known !== undefined) return known
    const created: Collection = { docs: new Map(), indexes: [{ name: '_id_', key: { _id: 1 } }] }
    this.collections.set(ns, created)
    return created
  }

  session (id: string): Session {
    const known = this.sessions.get(id)
    if (known !== undefined) return known
    const created: Session = { txnNumber: -1, executed: new Map() }
    this.sessions.set(id, created)
    return created
  }

  get openTransactions (): Transaction[] {
    return [...this.sessions.values()].flatMap(({ transaction }) => transaction?.state === 'open' ? [transaction] : [])
  }
}

/**
 * What one transaction sees: the data as it was when it began, and its own writes, which nobody else sees before
 * `commit`. A command outside of a transaction is a transaction of its own, which begins and ends with it; its writes
 * wait for open transactions where these conflict.
 */
class View {
  readonly #store: Store
  readonly #snapshot: ReadonlyMap<string, ReadonlyMap<string, Doc>> | undefined
  readonly #writes = new Map<string, Map<string, Doc | null>>()
  readonly #locks: string[] = []
  readonly #ended = signal()
  readonly ended = this.#ended.promise

  constructor (store: Store, transaction: boolean) {
    this.#store = store
    if (transaction) this.#snapshot = new Map([...store.collections].map(([ns, { docs }]) => [ns, new Map(docs)]))
  }

  get (ns: string, key: string): Doc | undefined {
    const written = this.#writes.get(ns)?.get(key)
    return written === undefined ? this.#base(ns)?.get(key) : written ?? undefined
  }

  all (ns: string): Doc[] {
    const base = this.#base(ns) ?? new Map<string, Doc>()
    const writes = this.#writes.get(ns)
    if (writes === undefined) return [...base.values()]
    return [...new Set([...base.keys(), ...writes.keys()])].map((key) => this.get(ns, key))
      .filter((doc) => doc !== undefined)
  }

  find (ns: string, filter: Doc): Doc[] {
    const id = filter._id
    if (id !== undefined && id !== null && !isDoc(id) && !Array.isArray(id) && !(id instanceof RegExp)) {
      const doc = this.get(ns, keyOf(id))
      return doc !== undefined && matches(doc, filter) ? [doc] : []
    }
    return this.all(ns).filter((doc) => matches(doc, filter))
  }

  insert (ns: string, doc: Doc): Doc {
    const whole = doc._id === undefined ? { _id: new ObjectId(), ...doc } : doc
    const key = keyOf(whole._id)
    this.#claim(ns, key)
    if (this.get(ns, key) !== undefined) throw duplicate(ns, { name: '_id_', key: { _id: 1 } }, whole)
    this.#write(ns, key, whole)
    return whole
  }

  replace (ns: string, doc: Doc): void {
    this.#claim(ns, keyOf(doc._id))
    this.#write(ns, keyOf(doc._id), doc)
  }

  delete (ns: string, doc: Doc): void {
    this.#claim(ns, keyOf(doc._id))
    this.#write(ns, keyOf(doc._id), null)
  }

  commit (): void {
    for (const [ns, writes] of this.#writes) {
      const { docs } = this.#store.collection(ns)
      for (const [key, doc] of writes) {
        if (doc === null) docs.delete(key)
        else docs.set(key, doc)
      }
    }
    if (this.#writes.size > 0) this.#store.time++
    this.abort()
  }

  abort (): void {
    this.#writes.clear()
    for (const lock of this.#locks) this.#store.locks.delete(lock)
    this.#locks.length = 0
    this.#ended.resolve()
  }

  #base (ns: string): ReadonlyMap<string, Doc> | undefined {
    return this.#snapshot === undefined ? this.#store.collections.get(ns)?.docs : this.#snapshot.get(ns)
  }

  /** The first writer wins: others conflict with it (in a transaction), or wait for its end. */
  #lock (name: string): void {
    const holder = this.#store.locks.get(name)
    if (holder === this) return
    if (holder !== undefined) throw this.#snapshot === undefined ? new Blocked(holder) : conflict()
    this.#store.locks.set(name, this)
    this.#locks.push(name)
  }

  #claim (ns: string, key: string): void {
    this.#lock(`${ns}\0${key}`)
    const changedSince = this.#snapshot !== undefined &&
      this.#store.collections.get(ns)?.docs.get(key) !== this.#base(ns)?.get(key)
    if (changedSince) throw conflict()
  }

  #write (ns: string, key: string, doc: Doc | null): void {
    if (doc !== null) this.#checkUnique(ns, key, doc)
    const writes = this.#writes.get(ns) ?? new Map<string, Doc | null>()
    this.#writes.set(ns, writes)
    writes.set(key, doc)
  }

  #checkUnique (ns: string, key: string, doc: Doc): void {
    const live = this.#store.collections.get(ns)
    for (const index of live?.indexes ?? []) {
      const entry = entryOf(index, doc)
      if (entry === undefined) continue
      this.#lock(`${ns}\0${index.name}\0${entry}`)
      const isOther = (other: Doc) => keyOf(other._id) !== key && entryOf(index, other) === entry
      if (this.all(ns).some(isOther)) throw duplicate(ns, index, doc)
      // Committed since the snapshot, and nothing that this transaction itself has taken out of the way.
      const isNew = (other: Doc) => isOther(other) && this.#writes.get(ns)?.has(keyOf(other._id)) !== true
      if (this.#snapshot !== undefined && [...live?.docs.values() ?? []].some(isNew)) throw conflict()
    }
  }
}

/** What a unique index has of a document. `undefined`: nothing. */
function entryOf ({ key, unique, sparse }: Index, doc: Doc): string | undefined {
  if (unique !== true) return undefined
  const values = Object.keys(key).map((path) => valueAt(doc, path))
  return sparse === true && values.every((value) => value === undefined) ? undefined : values.map(keyOf).join('\0')
}

function duplicate (ns: string, { name, key }: Index, doc: Doc): CommandError {
  const keyValue = Object.fromEntries(Object.keys(key).map((path) => [path, valueAt(doc, path) ?? null]))
  const message = `E11000 duplicate key error collection: ${ns} index: ${name} dup key: ${EJSON.stringify(keyValue)}`
  return new CommandError(11000, message, { keyPattern: key, keyValue })
}

const conflict = () =>
  new CommandError(112,
    'Write conflict during plan execution. Please retry your operation or multi-document transaction.')

// --- Commands --------------------------------------------------------------------------------------------------------

/** One command that is being executed. */
interface Call {
  readonly body: Doc
  readonly db: string
  /** Namespace of the command's collection. */
  readonly ns: string
  readonly store: Store
  readonly view: View
  readonly member: Replica
  readonly peer: Peer
  readonly session: Session | undefined
  /** Of a retryable write: what earlier tries have done, and where this one notes what it did. */
  readonly executed: ReadonlyMap<number, StatementResult> | undefined
  readonly executing: Map<number, StatementResult>
}

interface Command {
  /** Which member answers it. 'read': the primary, or any where the read preference allows. */
  readonly at: 'any' | 'read' | 'primary'
  /** Allowed in a transaction. */
  readonly inTransaction?: boolean
  /** Needs no login. */
  readonly open?: boolean
  run (call: Call): Doc
}

/** Options whose silent neglect would make a test believe something that is not so. */
const unsupported = ['collation', 'arrayFilters', 'min', 'max', 'tailable', 'let']

function openCursor (
  call: Call, ns: string, docs: Doc[], { batchSize, single = false }: { batchSize?: unknown, single?: boolean }
): Doc {
  const first = docs.slice(0, batchSize === undefined ? 101 : Number(batchSize))
  const rest = docs.slice(first.length)
  const id = rest.length === 0 || single ? 0 : call.member.addCursor(ns, rest)
  return { cursor: { firstBatch: first, id: Long.fromNumber(id), ns } }
}

/**
 * Runs the statements of a write command. A statement that an earlier try with the same session, number and statement
 * id has executed is answered from memory and not executed again; so is a different write that comes with the same
 * number, by the real server's rule too.
 */
function statements (call: Call, list: readonly Doc[], run: (statement: Doc) => StatementResult): Doc {
  const { body, executed, executing } = call
  const given = Array.isArray(body.stmtIds) ? body.stmtIds : []
  const retried: number[] = []
  const writeErrors: Doc[] = []
  const upserted: Doc[] = []
  let n = 0
  let nModified: number | undefined
  for (const [index, statement] of list.entries()) {
    const id = Number(given[index] ?? Number(body.stmtId ?? 0) + index)
    try {
      const known = executed?.get(id)
      if (known !== undefined) retried.push(id)
      const result = known ?? run(statement)
      executing.set(id, result)
      n += result.n
      if (result.nModified !== undefined) nModified = (nModified ?? 0) + result.nModified
      if (result.upserted !== undefined) upserted.push({ index, _id: result.upserted })
    } catch (error) {
      if (!(error instanceof CommandError) || error.code === 112) throw error
      writeErrors.push({ index, code: error.code, errmsg: error.message, ...error.details })
      if (body.ordered !== false || body.autocommit === false) break
    }
  }
  const some = <T>(items: T[]): T[] | undefined => items.length === 0 ? undefined : items
  return { n, nModified, upserted: some(upserted), writeErrors: some(writeErrors), retriedStmtIds: some(retried) }
}

function updateOne (call: Call, { q, u, multi, upsert, sort }: Doc): StatementResult {
  const found = sorted(call.view.find(call.ns, asDoc(q)), sort)
  if (found.length === 0 && upsert === true) {
    const { _id } = call.view.insert(call.ns, updated(seedOf(asDoc(q)), u, true))
    return { n: 1, nModified: 0, upserted: _id }
  }
  if (multi === true && !isOperators(u)) {
    throw new CommandError(9,
      'multi update is not supported for replacement-style update')
  }
  let nModified = 0
  const targets = multi === true ? found : found.slice(0, 1)
  for (const doc of targets) {
    const next = updated(doc, u, false)
    call.view.replace(call.ns, next)
    if (keyOf(next) !== keyOf(doc)) nModified++
  }
  return { n: targets.length, nModified }
}

function findAndModify (call: Call): StatementResult {
  const { query, sort, remove, update, upsert, fields, new: wantsNew } = call.body
  const { view, ns } = call
  const [before] = sorted(view.find(ns, asDoc(query)), sort)
  const shown = (doc: Doc | undefined) => doc === undefined ? null : projected(doc, fields)
  const answer = (lastErrorObject: Doc, value: Doc | null): StatementResult =>
    ({ n: Number(lastErrorObject.n), reply: { lastErrorObject, value } })
  if (remove === true) {
    if (before !== undefined) view.delete(ns, before)
    return answer({ n: before === undefined ? 0 : 1 }, shown(before))
  }
  if (before === undefined && upsert !== true) return answer({ n: 0, updatedExisting: false }, null)
  if (before === undefined) {
    const inserted = view.insert(ns, updated(seedOf(asDoc(query)), update, true))
    return answer({ n: 1, updatedExisting: false, upserted: inserted._id }, wantsNew === true ? shown(inserted) : null)
  }
  const after = updated(before, update, false)
  view.replace(ns, after)
  return answer({ n: 1, updatedExisting: true }, shown(wantsNew === true ? after : before))
}

function createIndex (call: Call, index: Doc): void {
  const { docs, indexes } = call.store.collection(call.ns)
  const name = String(index.name)
  if (indexes.some((other) => other.name === name)) return
  const made: Index = {
    name, key: asDoc(index.key), unique: index.unique === true || undefined, sparse: index.sparse === true || undefined,
  }
  const seen = new Set<string>()
  for (const doc of docs.values()) {
    const entry = entryOf(made, doc)
    if (entry === undefined) continue
    if (seen.has(entry)) throw duplicate(call.ns, made, doc)
    seen.add(entry)
  }
  indexes.push(made)
}

/** Ends the session's transaction, again if need be: a commit that is retried after it went through is answered ok. */
function endTransaction (call: Call, as: 'committed' | 'aborted'): Doc {
  const { session, body } = call
  const transaction = session?.txnNumber === body.txnNumber ? session?.transaction : undefined
  if (transaction?.state === as && as === 'committed') return {}
  if (transaction?.state !== 'open') {
    if (transaction?.state === 'committed') {
      throw new CommandError(256,
      `Transaction ${String(body.txnNumber)} has been committed.`)
    }
    throw new CommandError(251,
      `Transaction with { txnNumber: ${String(body.txnNumber)} } has been aborted or is unknown.`)
  }
  transaction.state = as
  if (as === 'committed') transaction.view.commit()
  else transaction.view.abort()
  return {}
}

const commands: Readonly<Record<string, Command>> = {
  ping: { at: 'any', open: true, run: () => ({}) },
  buildInfo: {
    at: 'any',
    open: true,
    run: () => ({
      version: '7.0.0', versionArray: [7, 0, 0, 0], gitVersion: 'mongo-wire double', modules: [],
    })
  },
  serverStatus: {
    at: 'any',
    run: ({ member }) => ({
      host: member.address,
      version: '7.0.0',
      process: 'mongo-wire double',
      connections: {
        current: member.connections.all,
        available: member.limit - member.connections.all,
        totalCreated: member.accepted,
      },
    }),
  },
  saslStart: { at: 'any', open: true, run: ({ peer, body }) => peer.login.start(body) },
  saslContinue: { at: 'any', open: true, run: ({ peer, body }) => peer.login.continue(body) },
  // A real server forgets the session, and aborts its transaction some time later. Here an open one stays: a test sees
  // who forgot to end it.
  endSessions: {
    at: 'any',
    open: true,
    run: ({ store, body }) => {
      for (const { id } of asDocs(body.endSessions)) {
        if (store.sessions.get(sessionId(id))?.transaction?.state !== 'open') store.sessions.delete(sessionId(id))
      }
      return {}
    },
  },

  find: {
    at: 'read',
    inTransaction: true,
    run: (call) => {
      const { filter, sort, skip = 0, limit = 0, projection, batchSize, singleBatch } = call.body
      const found = sorted(call.view.find(call.ns, asDoc(filter)), sort)
      const some = found.slice(Number(skip), limit === 0 ? undefined : Number(skip) + Number(limit))
      return openCursor(call, call.ns, some.map((doc) => projected(doc, projection)),
        { batchSize, single: singleBatch === true })
    },
  },
  aggregate: {
    at: 'read',
    inTransaction: true,
    run: (call) => {
      if (typeof call.body.aggregate !== 'string') throw new CommandError(238, 'the double aggregates collections only')
      return openCursor(call, call.ns, aggregated(call.view.all(call.ns), asDocs(call.body.pipeline)),
        asDoc(call.body.cursor))
    },
  },
  getMore: {
    at: 'any',
    inTransaction: true,
    run: ({ body, ns, member }) => {
      const id = Number(body.getMore)
      const nextBatch = member.nextBatch(id, Number(body.batchSize ?? Infinity))
      if (nextBatch === undefined) throw new CommandError(43, `cursor id ${id} not found`)
      return { cursor: { nextBatch, id: Long.fromNumber(member.hasCursor(id) ? id : 0), ns } }
    },
  },
  killCursors: {
    at: 'any',
    inTransaction: true,
    run: ({ body, member }) => {
      const ids = Array.isArray(body.cursors) ? body.cursors : []
      const killed = ids.filter((id) => member.killCursor(Number(id)))
      return {
        cursorsKilled: killed,
        cursorsNotFound: ids.filter((id) =>
          !killed.includes(id)),
        cursorsAlive: [],
        cursorsUnknown: []
      }
    },
  },
  count: {
    at: 'read',
    run: ({ view, ns, body: { query, skip = 0, limit = 0 } }) => {
      const found = Math.max(0, view.find(ns, asDoc(query)).length - Number(skip))
      return { n: limit === 0 ? found : Math.min(found, Math.abs(Number(limit))) }
    },
  },
  distinct: {
    at: 'read',
    inTransaction: true,
    run: ({ view, ns, body }) => {
      const reached = view.find(ns, asDoc(body.query)).flatMap((doc) => valuesAt(doc, String(body.key).split('.')))
        .flat()
      return { values: [...new Map(reached.map((value) => [keyOf(value), value])).values()].toSorted(compare) }
    },
  },

  insert: {
    at: 'primary',
    inTransaction: true,
    run: (call) => statements(call, asDocs(call.body.documents), (doc) => {
      call.view.insert(call.ns, doc)
      return { n: 1 }
    }),
  },
  update: {
    at: 'primary',
    inTransaction: true,
    run: (call) => statements(call, asDocs(call.body.updates), (statement) => updateOne(call, statement)),
  },
  delete: {
    at: 'primary',
    inTransaction: true,
    run: (call) => statements(call, asDocs(call.body.deletes), ({ q, limit }) => {
      const found = call.view.find(call.ns, asDoc(q)).slice(0, limit === 1 ? 1 : undefined)
      for (const doc of found) call.view.delete(call.ns, doc)
      return { n: found.length }
    }),
  },
  findAndModify: {
    at: 'primary',
    inTransaction: true,
    run: (call) => {
      const id = Number(call.body.stmtId ?? 0)
      const known = call.executed?.get(id)
      const result = known ?? findAndModify(call)
      call.executing.set(id, result)
      return { ...result.reply, retriedStmtId: known === undefined ? undefined : id }
    },
  },
  commitTransaction: { at: 'primary', inTransaction: true, run: (call) => endTransaction(call, 'committed') },
  abortTransaction: { at: 'primary', inTransaction: true, run: (call) => endTransaction(call, 'aborted') },

  create: {
    at: 'primary',
    run: ({ store, ns }) => {
      if (store.collections.has(ns)) throw new CommandError(48, `Collection ${ns} already exists.`)
      store.collection(ns)
      return {}
    },
  },
  drop: {
    at: 'primary',
    run: ({ store, ns }) => {
      store.collections.delete(ns)
      return { ns }
    },
  },
  dropDatabase: {
    at: 'primary',
    run: ({ store, db }) => {
      for (const ns of [...store.collections.keys()]) if (ns.startsWith(`${db}.`)) store.collections.delete(ns)
      return { dropped: db }
    },
  },
  createIndexes: {
    at: 'primary',
    run: (call) => {
      const { indexes } = call.store.collection(call.ns)
      const numIndexesBefore = indexes.length
      for (const index of asDocs(call.body.indexes)) createIndex(call, index)
      return { numIndexesBefore, numIndexesAfter: indexes.length }
    },
  },
  listIndexes: {
    at: 'read',
    run: (call) => {
      const known = call.store.collections.get(call.ns)
      if (known === undefined) throw new CommandError(26, `ns does not exist: ${call.ns}`)
      return openCursor(call, call.ns, known.indexes.map((index) => ({ v: 2, ...index })), {})
    },
  },
  listCollections: {
    at: 'read',
    run: (call) => {
      const names = [...call.store.collections.keys()].filter((ns) => ns.startsWith(`${call.db}.`))
        .map((ns) => ns.slice(call.db.length + 1))
      const all = names.map((name): Doc => ({ name, type: 'collection', options: {}, info: { readOnly: false } }))
      return openCursor(call, `${call.db}.$cmd.listCollections`,
        all.filter((doc) => matches(doc, asDoc(call.body.filter))), {})
    },
  },
  listDatabases: {
    at: 'read',
    run: ({ store }) => {
      const names = [...new Set([...store.collections.keys()].map((ns) => ns.slice(0, ns.indexOf('.'))))]
      return { databases: names.map((name) => ({ name, sizeOnDisk: 1, empty: false })), totalSize: names.length }
    },
  },
}

// --- Logins: SCRAM-SHA-256 (RFC 5802, RFC 7677) ----------------------------------------------------------------------

interface Account { readonly user: string, password: string }

const hmac = (key: Buffer, text: string) => createHmac('sha256', key).update(text).digest()

function payloadOf (body: Doc): string {
  return body.payload instanceof Binary ? Buffer.from(body.payload.value()).toString('utf8') : ''
}

class Login {
  static readonly #iterations = 4096 // the least that the driver accepts
  static readonly #salt = randomBytes(24)
  readonly #account: Account | undefined
  /** Set between saslStart and the proof. */
  #conversation: { bare: string, first: string, nonce: string, skipsEmpty: boolean } | undefined
  #proven = false
  done = false

  constructor (account: Account | undefined) {
    this.#account = account
  }

  start (body: Doc): Doc {
    if (body.mechanism !== 'SCRAM-SHA-256') {
      throw new CommandError(334,
      `the double knows SCRAM-SHA-256 only, not ${String(body.mechanism)}`)
    }
    const bare = payloadOf(body).replace(/^n,[^,]*,/, '')
    const { n: user, r: clientNonce = '' } = Login.#fields(bare)
    if (this.#account === undefined ||
      user !== this.#account.user.replaceAll('=', '=3D').replaceAll(',', '=2C')) throw Login.#refused()
    const nonce = clientNonce + randomBytes(24).toString('base64')
    const first = `r=${nonce},s=${Login.#salt.toString('base64')},i=${Login.#iterations}`
    this.#conversation = { bare, first, nonce, skipsEmpty: asDoc(body.options).skipEmptyExchange === true }
    return { conversationId: 1, done: false, payload: new Binary(Buffer.from(first)) }
  }

  continue (body: Doc): Doc {
    if (this.#proven) {
      this.done = true
      return { conversationId: 1, done: true, payload: new Binary(Buffer.alloc(0)) }
    }
    const conversation = this.#conversation
    this.#conversation = undefined
    if (conversation === undefined || this.#account === undefined) throw Login.#refused()
    const final = payloadOf(body)
    const { r: nonce, p: proof = '' } = Login.#fields(final)
    const message = [conversation.bare, conversation.first, final.slice(0, final.lastIndexOf(',p='))].join(',')
    const salted = pbkdf2Sync(this.#account.password, Login.#salt, Login.#iterations, 32, 'sha256')
    const stored = createHash('sha256').update(hmac(salted, 'Client Key')).digest()
    const signature = hmac(stored, message)
    const given = Buffer.from(proof, 'base64')
    const clientKey = given.map((byte, index) => byte ^ (signature[index] ?? 0))
    const proves = nonce === conversation.nonce && createHash('sha256').update(clientKey).digest().equals(stored)
    if (!proves) throw Login.#refused()
    this.#proven = true
    this.done = conversation.skipsEmpty
    const verifier = hmac(hmac(salted, 'Server Key'), message).toString('base64')
    return { conversationId: 1, done: this.done, payload: new Binary(Buffer.from(`v=${verifier}`)) }
  }

  static #fields (text: string): Record<string, string> {
    return Object.fromEntries(text.split(',').map((part) => [part.slice(0, 1), part.slice(2)]))
  }

  static #refused (): CommandError {
    return new CommandError(18, 'Authentication failed.')
  }
}

// --- Wire: one connection --------------------------------------------------------------------------------------------

const OP_REPLY = 1
const OP_QUERY = 2004
const OP_MSG = 2013
const CHECKSUM_PRESENT = 1
const MORE_TO_COME = 2
const EXHAUST_ALLOWED = 1 << 16

interface Message {
  readonly id: number
  readonly opCode: number
  readonly db: string
  readonly body: Doc
  /** No answer wanted (an unacknowledged write). */
  readonly silent: boolean
  /** May be answered more than once. */
  readonly exhaust: boolean
}

let messageIds = 0

function decode (bytes: Buffer): Message {
  const id = bytes.readInt32LE(4)
  const opCode = bytes.readInt32LE(12)
  if (opCode === OP_QUERY) {
    const end = bytes.indexOf(0, 20)
    const body = asDoc(BSON.deserialize(bytes.subarray(end + 9)))
    return {
      id, opCode, db: bytes.toString('utf8', 20, end).replace(/\.\$cmd$/, ''), body, silent: false, exhaust: false,
    }
  }
  if (opCode !== OP_MSG) throw new Error(`the double does not read op code ${opCode}`)
  const flags = bytes.readInt32LE(16)
  const end = bytes.length - ((flags & CHECKSUM_PRESENT) === 0 ? 0 : 4)
  let body: Doc = {}
  const sequences: Doc = {}
  for (let at = 20; at < end;) {
    const isSequence = bytes.readUInt8(at++) === 1
    const stop = at + bytes.readInt32LE(at)
    if (isSequence) {
      const nameEnd = bytes.indexOf(0, at + 4)
      const docs: Doc[] = []
      for (let from = nameEnd + 1, to = from; from < stop; from = to) {
        to += bytes.readInt32LE(from)
        docs.push(BSON.deserialize(bytes.subarray(from, to)))
      }
      sequences[bytes.toString('utf8', at + 4, nameEnd)] = docs
    } else {
      body = BSON.deserialize(bytes.subarray(at, stop))
    }
    at = stop
  }
  const [silent, exhaust] = [(flags & MORE_TO_COME) !== 0, (flags & EXHAUST_ALLOWED) !== 0]
  return { id, opCode, db: String(body.$db), body: { ...body, ...sequences }, silent, exhaust }
}

function encode (
  doc: Doc, { responseTo, opCode, more }: { responseTo: number, opCode: number, more: boolean }
): Buffer {
  const body = BSON.serialize(doc, { ignoreUndefined: true })
  const head = Buffer.alloc(opCode === OP_QUERY ? 36 : 21)
  head.writeInt32LE(head.length + body.length, 0)
  head.writeInt32LE(++messageIds, 4)
  head.writeInt32LE(responseTo, 8)
  head.writeInt32LE(opCode === OP_QUERY ? OP_REPLY : OP_MSG, 12)
  if (opCode === OP_QUERY) {
    head.writeInt32LE(8, 16) // AwaitCapable, as every server sets
    head.writeInt32LE(1, 32)
  } else if (more) {
    head.writeInt32LE(MORE_TO_COME, 16)
  }
  return Buffer.concat([head, body])
}

/** The server's side of one connection. Answers one message after the other. */
class Peer {
  readonly id: number
  readonly login: Login
  readonly #double: Double
  readonly #member: Replica
  readonly #socket: Socket
  readonly #closed = signal()
  readonly closed = this.#closed.promise
  isClosed = false
  /** Whether it belongs to the driver's pool, as far as one can know. */
  isPooled = false
  isListening = false
  #input: Buffer = Buffer.alloc(0)
  #busy = false

  constructor (double: Double, member: Replica, socket: Socket, id: number) {
    this.#double = double
    this.#member = member
    this.#socket = socket
    this.id = id
    this.login = new Login(double.account)
    socket.setNoDelay(true)
    // An error (a client that resets) is always followed by 'close', which is what counts here.
    socket.on('error', () => {})
    socket.on('close', () => {
      this.isClosed = true
      this.#closed.resolve()
      member.forget(this)
    })
    socket.on('data', (chunk: Buffer) => {
      this.#input = this.#input.length === 0 ? chunk : Buffer.concat([this.#input, chunk])
      if (this.#busy) return
      this.#work().catch((error: unknown) => {
        double.broken(error)
        this.reset()
      })
    })
  }

  reset (): void {
    // Node emits no 'close' for a socket that is reset while it ends: the client has closed it, so there is nobody left
    // to see the reset.
    if (this.#socket.writableEnded) this.#socket.destroy()
    else this.#socket.resetAndDestroy()
  }

  /** In ms; shorter where the connection closes. */
  async sleep (ms: number, or: Promise<void> = this.closed): Promise<void> {
    const over = signal()
    const timer = setTimeout(over.resolve, ms)
    await Promise.race([over.promise, or, this.closed])
    clearTimeout(timer)
  }

  async #work (): Promise<void> {
    this.#busy = true
    while (!this.isClosed && this.#input.length >= 4 && this.#input.length >= this.#input.readInt32LE(0)) {
      const length = this.#input.readInt32LE(0)
      const message = decode(this.#input.subarray(0, length))
      this.#input = this.#input.subarray(length)
      await this.#answer(message)
    }
    this.#busy = false
  }

  async #answer (message: Message): Promise<void> {
    const { body, db } = message
    const [given = ''] = Object.keys(body)
    const name = given.toLowerCase() === 'ismaster' ? 'hello' : given === 'findandmodify' ? 'findAndModify' : given
    if (!this.isPooled && (name !== 'hello' || body.speculativeAuthenticate !== undefined)) this.#member.pooled(this)
    await this.#member.running
    const entry = this.#entry(name, message)
    this.#double.arrived(entry)
    await this.#double.held(entry, this)
    const fault = this.#double.faultFor(entry)
    if (fault?.delay !== undefined) await this.sleep(fault.delay)
    if (this.isClosed) return
    const isFailure = fault?.closeConnection === true || fault?.code !== undefined
    if (name === 'hello' && !isFailure) return await this.#hello(message)
    let reply: Doc = {}
    if (!isFailure || fault.when === 'after') {
      reply = await this.#execute(name, db, body)
      if (this.isClosed) return
    }
    if (fault?.closeConnection === true) return this.reset()
    if (fault?.code !== undefined) {
      const error = new CommandError(fault.code, fault.message ?? 'Failing command, as the test asked for')
      if (stateChanges.has(fault.code)) this.#member.newTopology()
      this.#double.failed(name, body)
      reply = this.#errorOf(error, name, body, fault.labels)
    }
    await this.#send(message, reply)
    // Only now: an answer that told a monitor first would make the driver take the error for an old one.
    if (fault?.code !== undefined && stateChanges.has(fault.code)) this.#member.announce()
  }

  async #execute (name: string, db: string, body: Doc): Promise<Doc> {
    try {
      return { ...await this.#double.execute({ name, db, body, member: this.#member, peer: this }), ok: 1 }
    } catch (error) {
      if (error instanceof CommandError) return this.#errorOf(error, name, body)
      // A fault of the double itself: the client is told, and the test fails when it stops the double.
      this.#double.broken(error)
      return errorReply(new CommandError(8, `the double failed: ${String(error)}`), [])
    }
  }

  #errorOf (error: CommandError, name: string, body: Doc, labels?: readonly string[]): Doc {
    const topologyVersion = stateChanges.has(error.code) ? this.#member.topologyVersion : undefined
    return { ...errorReply(error, labels ?? labelsOf(error.code, name, body)), topologyVersion }
  }

  #entry (command: string, { db, body: { payload, ...body } }: Message): CommandEntry {
    const collection = command === 'getMore' ? body.collection : body[command]
    return {
      command,
      db,
      member: this.#member.index,
      connectionId: this.id,
      ...typeof collection === 'string' ? { collection } : {},
      ...body.lsid === undefined ? {} : { lsid: sessionId(asDoc(body.lsid).id) },
      ...body.txnNumber === undefined ? {} : { txnNumber: Number(body.txnNumber) },
      ...typeof body.startTransaction === 'boolean' ? { startTransaction: body.startTransaction } : {},
      ...typeof body.autocommit === 'boolean' ? { autocommit: body.autocommit } : {},
      body,
    }
  }

  async #send (message: Message, reply: Doc, more = false): Promise<void> {
    await this.#member.running
    const whole = { ...reply, ...this.#double.times() }
    if (!this.isClosed && !message.silent) {
      this.#socket.write(encode(whole, {
        responseTo: message.id, opCode: message.opCode, more,
      }))
    }
  }

  /**
   * Answers at once, or where the client knows this topology already, at the next change; an exhaust hello goes on so
   * for ever.
   */
  async #hello (message: Message): Promise<void> {
    const { body } = message
    const known = asDoc(body.topologyVersion)
    const process = known.processId
    let seen = process instanceof ObjectId && process.equals(this.#member.processId) ? Number(known.counter) : -1
    const awaits = body.topologyVersion !== undefined && body.maxAwaitTimeMS !== undefined
    const streams = awaits && message.exhaust
    for (;;) {
      this.isListening = awaits && seen === this.#member.version
      if (this.isListening) await this.sleep(Number(body.maxAwaitTimeMS), this.#member.changes)
      this.isListening = false
      if (this.isClosed) return
      seen = this.#member.version
      await this.#send(message, { ...this.#member.hello(), ...this.#speculate(body), connectionId: this.id, ok: 1 },
        streams)
      if (!streams) return
    }
  }

  /**
   * The first step of a login rides on the hello. Where it fails the driver hears nothing here, and the login itself
   * fails later.
   */
  #speculate (body: Doc): Doc {
    const mechanisms = body.saslSupportedMechs === undefined ||
      this.#double.account === undefined
      ? {}
      : { saslSupportedMechs: ['SCRAM-SHA-256'] }
    if (body.speculativeAuthenticate === undefined) return mechanisms
    try {
      return { ...mechanisms, speculativeAuthenticate: this.login.start(asDoc(body.speculativeAuthenticate)) }
    } catch (error) {
      if (error instanceof CommandError) return mechanisms
      throw error
    }
  }
}

function sessionId (id: unknown): string {
  return id instanceof Binary ? id.toString('hex') : keyOf(id)
}

// --- Topology: one member --------------------------------------------------------------------------------------------

class Replica implements Member {
  readonly index: number
  readonly host = '127.0.0.1'
  readonly limit: number
  port = 0
  accepted = 0
  processId = new ObjectId()
  /** Of what hello tells. */
  version = 0
  readonly #double: Double
  readonly #peers = new Set<Peer>()
  readonly #cursors = new Map<number, { ns: string, docs: Doc[] }>()
  #server: Server | undefined
  #changes = signal()
  #pause: Signal | undefined
  #peak = 0
  #total = 0
  #refused = 0

  constructor (double: Double, index: number, limit: number) {
    this.#double = double
    this.index = index
    this.limit = limit
  }

  get address (): string { return `${this.host}:${this.port}` }
  get isUp (): boolean { return this.#server !== undefined }
  get changes (): Promise<void> { return this.#changes.promise }
  /** Resolved unless paused. */
  get running (): Promise<void> | undefined { return this.#pause?.promise }
  get openCursors (): number { return this.#cursors.size }

  get state (): Member['state'] {
    if (!this.isUp) return 'down'
    if (this.#double.standalone) return 'standalone'
    return this.#double.primary === this ? 'primary' : 'secondary'
  }

  get connections (): ConnectionCounts {
    const open = [...this.#peers].filter((peer) => peer.isPooled).length
    const listening = [...this.#peers].filter((peer) => peer.isListening).length
    const all = this.#peers.size
    return { open, peak: this.#peak, total: this.#total, monitors: all - open, listening, all, refused: this.#refused }
  }

  async listen (port = this.port): Promise<void> {
    const server = createServer((socket) => this.#accept(socket))
    server.listen(port, this.host)
    await once(server, 'listening')
    this.port = (server.address() as AddressInfo).port
    this.#server = server
  }

  async kill (): Promise<void> {
    const server = this.#server
    if (server === undefined) return
    this.#server = undefined
    const closed = once(server, 'close')
    server.close()
    this.resume()
    this.#cursors.clear()
    this.#double.lost(this)
    await Promise.all([closed, this.resetAll()])
  }

  async restart (): Promise<void> {
    if (this.isUp) throw new Error(`member ${this.index} is up`)
    this.processId = new ObjectId()
    this.version = 0
    await this.listen()
    this.#double.found(this)
  }

  pause (): void {
    this.#pause ??= signal()
  }

  resume (): void {
    this.#pause?.resolve()
    this.#pause = undefined
  }

  async resetAll (): Promise<void> {
    const gone = [...this.#peers].map((peer) => peer.closed)
    for (const peer of this.#peers) peer.reset()
    await Promise.all(gone)
    // The second turn began with a look at all sockets, those of clients in this process included.
    await turn()
    await turn()
  }

  #accept (socket: Socket): void {
    if (this.#peers.size >= this.limit) {
      this.#refused++
      socket.destroy()
      return
    }
    this.accepted++
    this.#peers.add(new Peer(this.#double, this, socket, this.#double.nextConnectionId()))
  }

  pooled (peer: Peer): void {
    peer.isPooled = true
    this.#total++
    this.#peak = Math.max(this.#peak, this.connections.open)
    this.#double.counted()
  }

  forget (peer: Peer): void {
    this.#peers.delete(peer)
  }

  newTopology (): void {
    this.version++
  }

  /** Tells the streaming monitors. */
  announce (): void {
    const changes = this.#changes
    this.#changes = signal()
    changes.resolve()
  }

  get topologyVersion (): Doc | undefined {
    return this.#double.streams ? { processId: this.processId, counter: Long.fromNumber(this.version) } : undefined
  }

  hello (): Doc {
    const isPrimary = this.state !== 'secondary'
    const set = this.#double.standalone
      ? {}
      : {
          setName: 'rs',
          setVersion: 1,
          hosts: this.#double.members.map((member) => member.address),
          me: this.address,
          primary: this.#double.primary?.address,
          secondary: !isPrimary,
          electionId: isPrimary
            ? new ObjectId(`7fffffff${this.#double.term.toString(16).padStart(16, '0')}`)
            : undefined,
          lastWrite: { lastWriteDate: new Date() },
        }
    return {
      helloOk: true,
      isWritablePrimary: isPrimary,
      ismaster: isPrimary,
      ...set,
      topologyVersion: this.topologyVersion,
      maxBsonObjectSize: 16777216,
      maxMessageSizeBytes: 48000000,
      maxWriteBatchSize: 100000,
      localTime: new Date(),
      logicalSessionTimeoutMinutes: 30,
      minWireVersion: 0,
      maxWireVersion: 21, // MongoDB 7.0
      readOnly: false,
    }
  }

  addCursor (ns: string, docs: Doc[]): number {
    const id = this.#double.nextCursorId()
    this.#cursors.set(id, { ns, docs })
    return id
  }

  hasCursor (id: number): boolean {
    return this.#cursors.has(id)
  }

  killCursor (id: number): boolean {
    return this.#cursors.delete(id)
  }

  /** A cursor that is read to its end is gone. */
  nextBatch (id: number, size: number): Doc[] | undefined {
    const cursor = this.#cursors.get(id)
    const batch = cursor?.docs.splice(0, size)
    if (cursor?.docs.length === 0) this.#cursors.delete(id)
    return batch
  }
}

// --- The double ------------------------------------------------------------------------------------------------------

interface ActiveFault extends FailOptions { left: number, hits: number }
interface ActiveHold {
  readonly selection: Selection
  readonly released: Signal
  readonly waiting: Set<Peer>
  readonly watchers: Set<() => void>
}
interface Execution {
  readonly name: string
  readonly db: string
  readonly body: Doc
  readonly member: Replica
  readonly peer: Peer
}

function selects ({ commands, where }: Selection, entry: CommandEntry): boolean {
  const names = typeof commands === 'string' ? [commands] : commands
  const isNamed = names.includes(entry.command) || (names.includes('*') && entry.command !== 'hello')
  return isNamed && (where === undefined || where(entry))
}

class Double implements MongoDouble {
  readonly members: readonly Replica[]
  readonly log: CommandEntry[] = []
  readonly standalone: boolean
  readonly streams: boolean
  readonly account: Account | undefined
  primary: Replica | null
  term = 1
  readonly #store = new Store()
  readonly #faults: ActiveFault[] = []
  readonly #holds = new Set<ActiveHold>()
  #connectionIds = 0
  #cursorIds = 1e12
  #peak = 0
  #failure: unknown
  readonly #election: number | undefined
  #electing: NodeJS.Timeout | undefined

  constructor ({ members = 1, election, standalone = false, user, password, maxConnections = Infinity, monitoring = 'stream' }: MongoDoubleOptions) {
    if (standalone && members !== 1) throw new Error('a standalone server has one member')
    if ((user === undefined) !== (password === undefined)) throw new Error('user and password go together')
    this.standalone = standalone
    this.#election = election
    this.streams = monitoring === 'stream'
    if (user !== undefined && password !== undefined) this.account = { user, password }
    this.members = Array.from({ length: members }, (_, index) => new Replica(this, index, maxConnections))
    this.primary = this.members[0] ?? null
  }

  get url (): string {
    const login = this.account === undefined
      ? ''
      : `${encodeURIComponent(this.account.user)}:${encodeURIComponent(this.account.password)}@`
    const query =
      [...this.standalone ? [] : ['replicaSet=rs'], ...this.account === undefined ? [] : ['authSource=admin']].join('&')
    return `mongodb://${login}${this.members.map((member) => member.address).join(',')}/test${query === '' ? '' : `?${query}`}`
  }

  get connections (): ConnectionCounts {
    const sum = (field: keyof ConnectionCounts) =>
      this.members.reduce((total, member) => total + member.connections[field], 0)
    return {
      open: sum('open'),
      peak: this.#peak,
      total: sum('total'),
      monitors: sum('monitors'),
      listening: sum('listening'),
      all: sum('all'),
      refused: sum('refused'),
    }
  }

  get openTransactions (): number { return this.#store.openTransactions.length }
  get openCursors (): number { return this.members.reduce((total, member) => total + member.openCursors, 0) }

  // Steering

  stepDown (): void {
    const from = this.primary?.index ?? 0
    if (this.#election === undefined) return this.#setPrimary(this.#next(from))
    this.#setPrimary(null)
    this.#electAfter(from)
  }

  #next (from: number): Replica | null {
    const others = this.members.map((_, offset) => this.members[(from + offset) % this.members.length]).slice(1)
    return others.find((member) => member?.isUp) ?? null
  }

  #electAfter (from: number): void {
    clearTimeout(this.#electing)
    this.#electing = setTimeout(() => {
      const alive = this.members.filter(({ isUp }) => isUp).length
      if (this.primary === null && alive > this.members.length / 2) this.#setPrimary(this.#next(from))
    }, this.#election)
  }

  elect (index: number): void {
    const member = this.members[index]
    if (member?.isUp !== true) throw new Error(`member ${index} is down`)
    this.#setPrimary(member)
  }

  noPrimary (): void {
    this.#setPrimary(null)
  }

  async resetAll (): Promise<void> {
    await Promise.all(this.members.map((member) => member.resetAll()))
  }

  failCommand (options: FailOptions): Fault {
    const fault: ActiveFault = { ...options, left: options.times ?? 1, hits: 0 }
    this.#faults.push(fault)
    return {
      get hits () { return fault.hits },
      off: () => { fault.left = 0 },
    }
  }

  delay (command: string, ms: number): Fault {
    return this.failCommand({ commands: command, delay: ms, times: Infinity })
  }

  hold (commands: string | readonly string[] | Selection): Hold {
    const selection = typeof commands === 'string' || !('commands' in commands) ? { commands } : commands
    const hold: ActiveHold = { selection, released: signal(), waiting: new Set(), watchers: new Set() }
    this.#holds.add(hold)
    const arrived = (count: number) => new Promise<void>((resolve) => {
      const look = () => {
        if (hold.waiting.size < count) return
        hold.watchers.delete(look)
        resolve()
      }
      hold.watchers.add(look)
      look()
    })
    return {
      reached: arrived(1),
      get waiting () { return hold.waiting.size },
      arrived,
      release: () => {
        this.#holds.delete(hold)
        hold.released.resolve()
      },
    }
  }

  setPassword (password: string): void {
    if (this.account === undefined) throw new Error('the double was started without a user')
    this.account.password = password
  }

  documents (db: string, collection: string): Doc[] {
    return [...this.#store.collections.get(`${db}.${collection}`)?.docs.values() ?? []].map(clone)
  }

  async stop (): Promise<void> {
    for (const hold of this.#holds) hold.released.resolve()
    this.#holds.clear()
    await Promise.all(this.members.map((member) => member.kill()))
    clearTimeout(this.#electing)
    if (this.#failure !== undefined) throw new Error('the double itself failed', { cause: this.#failure })
  }

  // What members and connections tell

  nextConnectionId (): number { return ++this.#connectionIds }
  nextCursorId (): number { return ++this.#cursorIds }

  counted (): void {
    this.#peak = Math.max(this.#peak, this.connections.open)
  }

  arrived (entry: CommandEntry): void {
    if (entry.command !== 'hello') this.log.push(entry)
  }

  broken (error: unknown): void {
    this.#failure ??= error
  }

  lost (member: Replica): void {
    if (this.primary !== member) return
    this.#setPrimary(null)
    if (this.#election !== undefined) this.#electAfter(member.index)
  }

  found (member: Replica): void {
    if (this.members.length === 1) this.#setPrimary(member)
  }

  async held (entry: CommandEntry, peer: Peer): Promise<void> {
    for (const hold of this.#holds) {
      if (!selects(hold.selection, entry)) continue
      hold.waiting.add(peer)
      for (const look of hold.watchers) look()
      await Promise.race([hold.released.promise, peer.closed])
      hold.waiting.delete(peer)
    }
  }

  faultFor (entry: CommandEntry): FailOptions | undefined {
    const fault = this.#faults.find((one) => one.left > 0 && selects(one, entry))
    if (fault === undefined) return undefined
    fault.left--
    fault.hits++
    return fault
  }

  /** What every answer of a replica set carries. */
  times (): Doc {
    if (this.standalone) return {}
    const time = new Timestamp({ t: 1700000000, i: this.#store.time })
    return {
      operationTime: time,
      $clusterTime: {
        clusterTime: time, signature: { hash: new Binary(Buffer.alloc(20)), keyId: Long.ZERO },
      }
    }
  }

  #setPrimary (next: Replica | null): void {
    if (next === this.primary) return
    for (const transaction of this.#store.openTransactions) this.#abort(transaction)
    this.primary = next
    if (next !== null) this.term++
    for (const member of this.members) {
      member.newTopology()
      member.announce()
    }
  }

  // Execution

  async execute (execution: Execution): Promise<Doc> {
    for (;;) {
      try {
        return this.#run(execution)
      } catch (error) {
        if (!(error instanceof Blocked)) throw error
        await Promise.race([error.holder.ended, execution.peer.closed])
        if (execution.peer.isClosed) return {}
      }
    }
  }

  #run ({ name, db, body, member, peer }: Execution): Doc {
    const command = Object.hasOwn(commands, name) ? commands[name] : undefined
    if (command === undefined) throw new CommandError(59, `no such command: '${name}'`)
    if (this.account !== undefined && command.open !== true && !peer.login.done) {
      throw new CommandError(13,
      `Command ${name} requires authentication`)
    }
    this.#checkRole(command, body, member)
    const parts = [body, ...asDocs(body.updates), ...asDocs(body.deletes)]
    const odd =
      unsupported.filter((option) => parts.some((part) => part[option] !== undefined && part[option] !== false))
    if (odd.length > 0) throw new CommandError(238, `the double does not know: ${odd.join(', ')}`)
    const session = body.lsid === undefined ? undefined : this.#store.session(sessionId(asDoc(body.lsid).id))
    const transaction = this.#transactionOf(name, command, body, session)
    const isRetryable = body.txnNumber !== undefined && body.autocommit === undefined
    const collection = name === 'getMore' ? body.collection : body[name]
    const call: Call = {
      body,
      db,
      ns: `${db}.${String(collection)}`,
      store: this.#store,
      view: transaction?.view ?? new View(this.#store, false),
      member,
      peer,
      session,
      executed: isRetryable ? session?.executed : undefined,
      executing: new Map(),
    }
    try {
      const reply = command.run(call)
      if (transaction === undefined) call.view.commit()
      else if (reply.writeErrors !== undefined) this.#abort(transaction)
      if (isRetryable) for (const [id, result] of call.executing) session?.executed.set(id, result)
      return reply
    } catch (error) {
      // Any error ends a transaction, as on a server.
      if (transaction === undefined) call.view.abort()
      else this.#abort(transaction)
      throw error
    }
  }

  /**
   * A test let it fail: an error ends a transaction, whoever made it. But for that of a commit or an abort, which may
   * be sent again.
   */
  failed (name: string, body: Doc): void {
    if (body.autocommit !== false || name === 'commitTransaction' || name === 'abortTransaction') return
    const { txnNumber, transaction } = this.#store.session(sessionId(asDoc(body.lsid).id))
    if (transaction?.state === 'open' && txnNumber === Number(body.txnNumber)) this.#abort(transaction)
  }

  #abort (transaction: Transaction): void {
    transaction.state = 'aborted'
    transaction.view.abort()
  }

  #checkRole ({ at }: Command, body: Doc, member: Replica): void {
    if (at === 'any' || this.standalone || member === this.primary) return
    if (at === 'primary') throw new CommandError(10107, 'not primary')
    const { mode = 'primary' } = asDoc(body.$readPreference)
    if (mode === 'primary' || body.autocommit === false) {
      throw new CommandError(13435,
        'not primary and secondaryOk=false')
    }
  }

  /**
   * The open transaction that a command belongs to, begun here where it is its first. Also keeps the numbers of
   * retryable writes.
   */
  #transactionOf (name: string, command: Command, body: Doc, session: Session | undefined): Transaction | undefined {
    if (body.txnNumber === undefined) return undefined
    const number = Number(body.txnNumber)
    if (this.standalone) {
      throw new CommandError(20,
        'Transaction numbers are only allowed on a replica set member or mongos')
    }
    if (session === undefined) {
      throw new CommandError(72,
        'Transaction number requires a session ID to also be specified')
    }
    const inTransaction = body.autocommit === false
    const begins = body.startTransaction === true
    const ends = name === 'commitTransaction' || name === 'abortTransaction'
    if (inTransaction && command.inTransaction !== true) {
      throw new CommandError(263,
      `Cannot run '${name}' in a multi-document transaction.`)
    }
    if (inTransaction && body.writeConcern !== undefined && !ends) {
      throw new CommandError(72,
        'writeConcern is not allowed within a transaction')
    }
    if (number < session.txnNumber) {
      throw new CommandError(225,
      `Number ${number} is older than ${session.txnNumber} of the same session.`)
    }
    if (ends) return undefined
    const { state } = (number === session.txnNumber ? session.transaction : undefined) ?? {}
    if (inTransaction && !begins) {
      if (state === 'committed') throw new CommandError(256, `Transaction ${number} has been committed.`)
      if (state !== 'open') {
        throw new CommandError(251,
        `Given transaction number ${number} does not match any in-progress transactions.`)
      }
      if (body.readConcern !== undefined) {
        throw new CommandError(72,
          'Only the first command in a transaction may specify a readConcern')
      }
      return session.transaction
    }
    if (number === session.txnNumber) {
      if (begins) throw new CommandError(117, `Cannot start transaction ${number}: this number is in use already.`)
      if (state !== undefined) {
        throw new CommandError(217,
        `Number ${number} was used by a transaction, not by a retryable write.`)
      }
      return undefined
    }
    if (session.transaction?.state === 'open') this.#abort(session.transaction)
    session.txnNumber = number
    session.executed = new Map()
    session.transaction = begins ? { view: new View(this.#store, true), state: 'open' } : undefined
    return session.transaction
  }
}

/**
 * Starts the double on ports of 127.0.0.1, and stops it at the end of the test.
 *
 * @throws at its end (in the teardown), when the double itself failed.
 */
export async function startMongoDouble (t: Teardown, options: MongoDoubleOptions = {}): Promise<MongoDouble> {
  noteServer('MongoDB', 'wire version 21', 'test/doubles/mongo-wire: a protocol double, no real server')
  const double = new Double(options)
  t.teardown(() => double.stop())
  for (const member of double.members) await member.listen(member.index === 0 ? options.port ?? 0 : 0)
  return double
}
