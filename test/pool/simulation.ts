import { AsyncLocalStorage, AsyncResource } from 'node:async_hooks'
import { inspect } from 'node:util'
import fc from 'fast-check'
import type { Connector, DestroyReason, Transaction, Transactions } from '../../types/connector.js'
import type { PoolErrorCode } from '../../types/errors.js'
import type { HolderLabel, HookInfo, Lease, PoolEventName, PoolStats, Timer } from '../../types/pool.js'
import { PoolError } from '../../lib/engine/errors.js'
import type { EngineOptions } from '../../types/options.js'
import { lentTo, lendable } from '../../lib/engine/lease.js'
import { abandon, hold, Pool } from '../../lib/pool/pool.js'
import { VirtualClock, settle } from '../support/clock.js'

// A pool is lived with for a while, at random: callers that come, wait, leave, give back; a connector and hooks that
// answer, fail, are late or never answer; listeners that throw and call the pool. The connector keeps books of its own,
// and at each rest the engine's promises are checked against those. A plan is plain data, drawn by fast-check, so a
// failing one shrinks to the few steps that matter.

// --- Plans -----------------------------------------------------------------------------------------------------------

/** What a foreign function does when the pool calls it. */
export type Outcome =
  /** Answers, but not at once. */
  | 'ok'
  /** Answers at once: returns no promise. */
  | 'sync'
  | 'error'
  | 'throw'
  /** Answered by an `answer` action. Gives up when its signal aborts. */
  | 'slow'
  /** As `slow`, but ignores its signal. */
  | 'deaf'
  /** Never answers before the end of the run, but gives up when its signal aborts. */
  | 'hang'
  /** Ignores its signal, and answers when its deadline has passed. */
  | 'late'
  /** `validate`: not valid. `create`: delivers a connection that is broken already. `onAcquire`: a promise of false. */
  | 'no'
  /** `onAcquire`: false. */
  | 'refuse'

type HookName = 'onConnect' | 'onAcquire' | 'onRelease' | 'onDisconnect'
type Phase = 'begin' | 'savepoint' | 'commit' | 'rollback'
type Method = 'create' | 'destroy' | 'validate' | 'reset' | HookName | Phase

const isPhase = (method: Method) => method === 'begin' || method === 'savepoint' || method === 'commit' ||
  method === 'rollback'

const eventNames = [
  'connect', 'disconnect', 'acquire', 'release', 'wait', 'overflow', 'timeout', 'refuse', 'leak', 'unleak', 'hold',
  'overdue', 'error',
  'circuit', 'driver',
  'open', 'drain', 'close',
] as const satisfies readonly PoolEventName[]

const behaviours = [
  'count', 'throw', 'reject', 'acquire', 'tryAcquire', 'release', 'destroy', 'evict', 'resize', 'stats', 'abort',
  'suspend', 'close', 'undo',
  'obstruct',
] as const

export type Action =
  | {
    readonly do: 'acquire' | 'use',
    readonly signal: 'none' | 'live' | 'aborted',
    readonly timeout: number | undefined,
    readonly holdTimeout: number | undefined,
  }
  | { readonly do: 'abort' | 'release' | 'destroy' | 'fail' | 'abandon' | 'stale' | 'die' | 'break' | 'isBrokenThrows' | 'move' | 'offer', readonly which: number }
  /** `nest`: called from within the function of an open one. */
  | { readonly do: 'transact' | 'hold' | 'nest', readonly which: number, readonly retry: number, readonly commitTimeout: number | undefined }
  /** Ends the function of an open one, or one that is held. */
  | { readonly do: 'conclude', readonly which: number, readonly how: 'ok' | 'error' }
  | { readonly do: 'evict', readonly idle: boolean, readonly used: boolean }
  | { readonly do: 'resize', readonly min: number | undefined, readonly max: number | undefined }
  | { readonly do: 'tryAcquire' | 'suspend' | 'resume' | 'open' | 'drain' | 'health' | 'driver' }
  | { readonly do: 'close', readonly timeout: number | undefined }
  /** Something is in the way of every loan, for so many ms; or, `throws`, nobody can say. */
  | { readonly do: 'obstruct', readonly ms: number, readonly throws: boolean }
  | { readonly do: 'answer', readonly which: number, readonly how: 'ok' | 'error' }
  | { readonly do: 'advance', readonly ms: number }
  /** The event loop stands still: timers come late. */
  | { readonly do: 'stall', readonly ms: number }

export interface Plan {
  readonly options: EngineOptions<Conn>
  /** What the connector can do besides `create` and `destroy`. */
  readonly can: { readonly close: Outcome | undefined } &
    Readonly<Record<'permanent' | 'validate' | 'isBroken' | 'reset' | 'onDeath' | 'obstacle' | 'transactions' | 'inDoubt', boolean>>
  /** Which hooks there are. */
  readonly hooks: readonly HookName[]
  /** What each call does; those beyond the end of the list are 'ok', or as `repeats` says. */
  readonly outcomes: Readonly<Record<Method, readonly Outcome[]>>
  /** Beyond the end of the list: its last one, not 'ok'. */
  readonly repeats: boolean
  readonly listeners: ReadonlyArray<{ readonly event: PoolEventName, readonly behaviour: typeof behaviours[number] }>
  /** `rest`: lets everything settle before the next one. */
  readonly steps: ReadonlyArray<{ readonly action: Action, readonly rest: boolean }>
  readonly seed: number
}

const often = <T>(weight: number, arbitrary: fc.Arbitrary<T>) => ({ weight, arbitrary })
const just = <T extends string>(...values: T[]) => fc.constantFrom(...values)
const which = fc.nat({ max: 7 })

/** Good outcomes are drawn more often than each bad one: else nothing is ever lent. */
const outcomesOf = (...bad: Outcome[]) => (...good: Outcome[]) =>
  fc.array(fc.oneof(often(3, just(...good)), often(2, just(...bad))), { maxLength: 12, size: 'max' })

const hookOutcomes = outcomesOf('error', 'throw', 'deaf', 'late')('sync', 'sync', 'ok')

const action: fc.Arbitrary<Action> = fc.oneof(
  often(10, fc.record({
    do: just('acquire', 'acquire', 'acquire', 'use'),
    signal: just('none', 'none', 'live', 'live', 'aborted'),
    timeout: fc.constantFrom(undefined, undefined, 1, 40, 300, 3000),
    holdTimeout: fc.constantFrom(undefined, undefined, undefined, 0, 60, 450),
  })),
  often(2, fc.record({ do: just('tryAcquire') })),
  often(2, fc.record({ do: just('move', 'offer', 'offer'), which })),
  often(8, fc.record({ do: just('release'), which })),
  often(3, fc.record({ do: just('abort'), which })),
  often(5, fc.record({
    do: just('destroy', 'fail', 'abandon', 'stale', 'die', 'die', 'break',
      'isBrokenThrows'),
    which
  })),
  often(6, fc.record({
    do: just('transact', 'transact', 'nest', 'nest', 'hold'),
    which,
    retry: fc.constantFrom(0, 0, 2),
    commitTimeout: fc.constantFrom(undefined, undefined, 0, 90, 400),
  })),
  often(6, fc.record({ do: just('conclude'), which, how: just('ok', 'ok', 'error') })),
  often(6, fc.record({ do: just('answer'), which, how: just('ok', 'ok', 'error') })),
  often(8, fc.record({ do: just('advance'), ms: fc.constantFrom(1, 5, 20, 50, 100, 200, 500, 1000, 3500) })),
  often(1, fc.record({ do: just('stall'), ms: fc.constantFrom(5, 30, 200, 1500, 4000) })),
  often(1, fc.record({ do: just('evict'), idle: fc.boolean(), used: fc.constantFrom(false, false, true) })),
  often(1, fc.record({
    do: just('resize'), min: fc.constantFrom(undefined, 0, 1, 2, 3), max: fc.constantFrom(undefined, 1, 2, 3, 4),
  })),
  often(4, fc.record({
    do: just('obstruct'), ms: fc.constantFrom(0, 0, 10, 60, 400, 10_000), throws: fc.constantFrom(false, false, true),
  })),
  often(2, fc.record({ do: just('suspend', 'resume', 'resume', 'open', 'open', 'health', 'health', 'driver') })),
  often(1, fc.oneof(fc.record({ do: just('drain') }), fc.record({
    do: just('close'), timeout: fc.constantFrom(undefined, 1, 100, 2000),
  })))
)

export const plans: fc.Arbitrary<Plan> = fc.record({
  options: fc.integer({ min: 1, max: 4 }).chain((max) => fc.record({
    max: fc.constant(max),
    min: fc.nat({ max }),
    acquireTimeout: fc.constantFrom(1000, 200, 5000),
    connectTimeout: fc.constantFrom(300, 1000),
    validateTimeout: fc.constantFrom(150, 400),
    resetTimeout: fc.constantFrom(150, 400),
    destroyTimeout: fc.constantFrom(200, 700),
    closeTimeout: fc.constantFrom(800, 3000),
    commitTimeout: fc.constantFrom(0, 120, 500),
    idleTimeout: fc.constantFrom(0, 60_000, 400, 2000),
    maxLifetime: fc.constantFrom(0, 700, 3000),
    maxUses: fc.constantFrom(0, 0, 1, 2, 3),
    validateAfter: fc.constantFrom(1000, 0, 50),
    keepalive: fc.constantFrom(0, 0, 250),
    maxPending: fc.constantFrom(1000, 0, 1, 2),
    maxConnecting: fc.constantFrom(undefined, undefined, 1, 2),
    leakAfter: fc.constantFrom(0, 350),
    backoff: fc.constantFrom({ min: 50, max: 1000 }, { min: 10, max: 80 }, { min: 20, max: 20 }),
    reset: fc.constantFrom<'session' | 'transaction' | 'none'>('session', 'session', 'transaction', 'none'),
    circuit: fc.constantFrom<EngineOptions['circuit']>(false, { failures: 1, after: 0, openFor: 300 },
      { failures: 2, after: 150, openFor: 100 }, { failures: 50, rate: 0.3, sample: 4, after: 60, openFor: 200 }),
    overload: fc.boolean(),
  })),
  can: fc.record({
    // All that `create` rejects with is a refusal for good.
    permanent: fc.constantFrom(false, false, true),
    validate: fc.boolean(),
    isBroken: fc.boolean(),
    reset: fc.boolean(),
    onDeath: fc.boolean(),
    obstacle: fc.boolean(),
    transactions: fc.constantFrom(true, true, false),
    inDoubt: fc.constantFrom(true, true, false),
    close: fc.constantFrom<Outcome | undefined>(undefined, 'sync', 'ok', 'error', 'throw', 'deaf'),
  }),
  hooks: fc.oneof(fc.constant<HookName[]>([]),
    fc.subarray<HookName>(['onAcquire', 'onConnect', 'onRelease', 'onDisconnect'], { minLength: 1 })),
  outcomes: fc.record({
    create: outcomesOf('error', 'error', 'throw', 'slow', 'deaf', 'hang', 'late', 'no')('ok'),
    destroy: outcomesOf('error', 'throw', 'slow', 'deaf', 'late')('ok', 'sync'),
    validate: outcomesOf('no', 'error', 'throw', 'slow', 'deaf', 'hang', 'late')('ok'),
    reset: outcomesOf('error', 'throw', 'slow', 'deaf', 'hang', 'late')('sync', 'ok'),
    begin: outcomesOf('error', 'throw', 'slow', 'deaf', 'hang', 'late')('ok'),
    savepoint: outcomesOf('error', 'throw', 'deaf', 'late')('ok'),
    commit: outcomesOf('error', 'throw', 'deaf', 'deaf', 'hang', 'late')('ok'),
    rollback: outcomesOf('error', 'throw', 'deaf', 'late')('ok'),
    onConnect: hookOutcomes,
    onAcquire: outcomesOf('deaf', 'deaf', 'deaf', 'late', 'error', 'throw', 'no', 'refuse')('sync', 'ok'),
    onRelease: hookOutcomes,
    onDisconnect: hookOutcomes,
  }),
  repeats: fc.boolean(),
  listeners: fc.oneof(
    fc.constant([]),
    fc.array(fc.record({ event: fc.constantFrom(...eventNames), behaviour: fc.constantFrom(...behaviours) }),
      { maxLength: 8, size: 'max' })
  ),
  steps: fc.tuple(
    fc.constantFrom([], [{ action: { do: 'open' } as const, rest: true }]),
    fc.array(fc.record({ action, rest: fc.integer({ min: 0, max: 3 }).map((chance) => chance !== 3) }),
      { maxLength: 60, size: 'max' })
  ).map((parts) => parts.flat()),
  seed: fc.nat(),
})

// --- The other side --------------------------------------------------------------------------------------------------

const secrets = { password: 'hunter2-is-the-password', url: 'hunter2-is-in-the-url' }

/** A call of the pool to foreign code that has not been answered. */
interface Call {
  readonly method: Method
  readonly conn: Conn | undefined
  readonly signal: AbortSignal | undefined
  /** For a validation: since it began, or since the event loop last went on. */
  since: number
  deadline: number
  /** The event loop stood still meanwhile. */
  stalled: boolean
  /** A validation that callers did not rely on any more when the event loop stood still. */
  doubted: boolean
  readonly outcome: Outcome
  /** The holder for whom `onAcquire` runs. */
  readonly holder: unknown
  /** Of a create: the generation, and the round. Creates that begin before one of them fails are a round. */
  readonly generation: number
  readonly round: number
  /** It counted as a failure already, when its deadline passed. */
  failed: boolean
  /** A create that was not needed any more before its deadline. */
  unwanted: boolean
  answered: boolean
  answer (how: 'ok' | 'error'): void
}

/** A connection, with what its connector knows about it. */
class Conn {
  /** The pool's id of it, as hooks are told. */
  poolId: number | undefined
  /** The batch in which it was delivered, or its `onConnect` ended. */
  cameIn = -1
  broken = false
  brokenIn = Infinity
  isBrokenThrows = false
  dead = false
  die: ((error?: Error) => void) | undefined
  /** A method or hook of it is under way. */
  busy: Call | undefined
  /** A validation whose signal aborted before it was answered. */
  unanswered: Call | undefined
  /** The deadline of a `create` that was answered after it. */
  late = false
  /** `onConnect` has run. */
  made = false
  madeAt = 0
  destroying: Call | undefined
  destroyedFor: DestroyReason | undefined
  gone = false
  lease: Held | undefined
  loans = 0
  /** When it was last seen alive. */
  aliveAt = 0
  validated = false
  /** Since that batch it must answer before it is lent, since another one was silent. */
  suspectIn = Infinity
  idleSince: number | undefined
  surplusSince: number | undefined
  /** Whose traces are on it. */
  dirty: unknown
  /** A session reset took what `onConnect` had set. */
  bare = false
  /** Since when it is being cleaned. */
  cleaning: number | undefined
  invalid = false
  /** It was evicted, whoever had it. */
  interrupted = false
  /** Something else on it failed. */
  wronged = false
  /** It was idle when those were evicted. */
  evicted = false
  ending: string | undefined
  /** The deadline of the acquire for which `onAcquire` ran. */
  preparedUntil = Infinity
  toldReason: DestroyReason | undefined
  /** The transactions that are open, each within the one before. */
  open: Level[] = []
  /** The batch in which nothing was in the way of its loan. */
  clearIn = -1
  /** The batch in which a commit rejected. */
  refusedIn = -1
  /** Its lease may end by itself: a transaction could not be undone, or not begun in time. */
  lost = false

  constructor (readonly id: number, readonly create: Call) {}
}

/** A transaction, or a savepoint, as the connector knows it. */
interface Level {
  /** 'unknown': its connection was destroyed, or the commit rejected, while it was in doubt. */
  committed: boolean | 'unknown'
  /** A commit is under way. */
  committing: boolean
  /** From then on COMMIT is written. */
  writtenAt: number
  /** The commit rejected, and that does not tell what became of it. */
  unanswered: boolean
  /** Whether it was in doubt when its connection was destroyed. */
  inDoubtAtEnd: boolean
  run: Run | undefined
  /** Of the outermost, in ms; 0: none. */
  commitTimeout: number
}

/** A call of `transaction` or `hold` that has not settled, and the function that runs in it now. */
interface Run {
  readonly held: Held
  readonly retry: number
  readonly commitTimeout: number | undefined
  /** The async contexts of whoever called it, and of whoever ended it. */
  readonly contexts: Set<string | undefined>
  /** When its function ended last, or it was told to commit or to roll back. */
  concludedAt: number
  /** Of the last time that its function ran. */
  level: Level | undefined
  /** Ends the function that runs now, or the transaction that is held. */
  conclude: ((how: 'ok' | 'error') => void) | undefined
  /** Calls from within the function. */
  within: (<T>(fn: () => T) => T) | undefined
}

type Refusal = Extract<PoolErrorCode,
  'FST_POOL_ACQUIRE_TIMEOUT' | 'FST_POOL_CONNECT_FAILED' | 'FST_POOL_QUEUE_FULL' | 'FST_POOL_OVERLOADED' | 'FST_POOL_CIRCUIT_OPEN' | 'FST_POOL_CLOSED' | 'FST_POOL_ABORTED'>

interface Ask {
  readonly n: number
  readonly holder: string
  readonly kind: 'acquire' | 'use'
  readonly since: number
  readonly deadline: number
  readonly controller: AbortController | undefined
  /** When it came, at least `maxPending` waited. */
  readonly isFull: boolean
  /** Counting also those who wait for no capacity, it was one too many. */
  readonly mustBeRefused: boolean
  readonly findsIdle: boolean
  /** 0: none. */
  readonly holdTimeout: number
  settled: boolean
  /** It has left the line with a connection, for which `onAcquire` runs. */
  prepared: boolean
  /** Listeners acquired within its call, those of a lease that was recalled for it included: they came first. */
  interrupted: boolean
  /** The last batch in which it may have been away from the line. */
  awayIn: number
  awayAtRest: boolean
}

interface Held {
  readonly lease: Lease<Conn>
  readonly conn: Conn
  readonly n: number
  readonly holder: string
  readonly since: number
  /** Ends the function of a `use()`. */
  readonly finish: (() => void) | undefined
  live: boolean
  /** It was out for longer than `leakAfter`. */
  leaked: boolean
  /** 0: none. */
  readonly holdTimeout: number
  /** How often its hold may start again, and how often its borrower has moved something. */
  readonly restarts: number
  moved: number
  readonly inVain: undefined
  offeredAt: number
  /** How long, in ms, the event loop is known to have stood still since. */
  stood: number
  /** Its hold is over by then, where the event loop never stood still. */
  endsBy: number
}

class SimulationClock extends VirtualClock {
  /** At least a half: then the least time between two creates that fail is known. */
  override random (): number {
    return 0.5 + super.random() / 2
  }

  /** When the next timer is due. There is one at most. */
  dueAt = Infinity

  override setTimer (fn: () => void, ms: number): Timer {
    const at = this.now() + ms
    const timer = super.setTimer(() => {
      this.dueAt = Infinity
      fn()
    }, ms)
    this.dueAt = at
    return { ...timer, cancel: () => { if (this.dueAt === at) this.dueAt = Infinity; timer.cancel() } }
  }
}

const store = new AsyncLocalStorage<string>()

/** What the process as a whole noticed. */
const strays: unknown[] = []

/** Notices what nobody handles. Returns its own undo. */
export function watchProcess (): () => void {
  const stray = (error: unknown) => { strays.push(error) }
  const warned = (warning: Error) => { if (tells(warning)) strays.push(`a warning tells a secret: ${warning.message}`) }
  // Node prints warnings, through a listener of its own: errors that listeners of `error` throw, here by the thousand.
  const printers = process.listeners('warning')
  process.removeAllListeners('warning')
  process.on('warning', warned).on('unhandledRejection', stray).on('uncaughtException', stray)
  const { stackTraceLimit } = Error
  // Nobody reads the thousands of stacks; making them would take most of the time.
  Error.stackTraceLimit = 0
  return () => {
    Error.stackTraceLimit = stackTraceLimit
    process.off('warning', warned).off('unhandledRejection', stray).off('uncaughtException', stray)
    for (const printer of printers) process.on('warning', printer)
  }
}

/** Whether a secret is in it, anywhere that can be read. */
function tells (value: unknown, depth = 0): boolean {
  if (typeof value === 'string') return value.includes('hunter2-')
  if (typeof value !== 'object' || value === null || depth > 6) return false
  return Object.getOwnPropertyNames(value).some((key) => tells((value as Record<string, unknown>)[key], depth + 1))
}

/** @throws what promise was broken, and the steps up to then */
export async function simulate (plan: Plan): Promise<void> {
  const world = new World(plan)
  await world.live()
}

/** The engine's own, where a plan says nothing. */
const deadlines = {
  acquireTimeout: 5000,
  connectTimeout: 3000,
  validateTimeout: 1000,
  resetTimeout: 1000,
  destroyTimeout: 2000,
  closeTimeout: 8000,
  commitTimeout: 5000,
  validateAfter: 1000,
  maxPending: 1000,
}

class World {
  readonly #plan: Plan
  readonly #clock: SimulationClock
  readonly #pool: Pool<Conn>
  readonly #options: EngineOptions<Conn> & typeof deadlines
  readonly #history: Array<{ readonly at: number, readonly what: Action | 'the end', readonly more: string }> = []
  readonly #violations: string[] = []

  // The connector's books.
  readonly #drawn: Partial<Record<Method, number>> = {}
  /** From now on all goes well. */
  #calm = false
  readonly #calls: Call[] = []
  /** Those whose destroy has not been answered. */
  readonly #conns = new Set<Conn>()
  #delivered = 0
  #creates = 0
  #createsInBatch = 0
  readonly #destroyed: Partial<Record<DestroyReason, number>> = {}
  #closes = 0
  #round = 0
  /** How many rounds in a row have failed, and since when. */
  #failures = 0
  #failingSince = Infinity
  /** How the last one failed; undefined: at its deadline, or in `onConnect`. */
  #answer: 'refusal' | 'death' | undefined
  /** When the circuit opened, within this batch. */
  #openedAt = Infinity
  #lastFailure = -Infinity
  #failedAt = -Infinity
  #expiredAt = -Infinity
  #leasesBefore = 0
  /** Creates that were answered, and the pool may not know it yet. */
  #failing: Call[] = []
  /** When a create last failed, or started while they fail: the next one may wait from then on. */
  #lastTrouble = -Infinity
  #createErrors = 0
  #createErrorsBefore = 0
  #driver: ((event: { name: string }) => void) | undefined
  /** What is in the way of loans. */
  #way = { until: -Infinity, throws: false }
  /** The pool knows of it: it was told so when it asked last. */
  #met = false
  #metAt = -Infinity
  /** The last batch before which somebody waited for that, and not for a connection. */
  #hinderedIn = -1
  #asked = 0

  // The callers' books.
  #n = 0
  readonly #asks = new Set<Ask>()
  readonly #signals: Ask[] = []
  readonly #held: Held[] = []
  readonly #ended: Held[] = []
  /** They go back as soon as somebody waits. */
  readonly #offered = new Set<Held>()
  #recalls = 0
  /** When no lease had to be recalled last, whoever waited. */
  #keptAt = -Infinity
  /** When the caller of now came. */
  #recallsBefore = 0
  /** How many waited then: whoever finds others in line joins it. */
  #pendingBefore = 0
  readonly #runs = new Set<Run>()
  /** Errors for which a transaction may be run again. */
  readonly #transient = new WeakSet<object>()
  #leases = 0
  /** How long anybody has waited, and how long anybody has held a connection, at most. */
  #longestWait = 0
  #longestHold = 0
  /** Callers that got no connection, and how many of them have waited, at least. */
  #failed = 0
  #inVain = 0
  #leaked = 0
  #mayHaveLeaked = 0
  #latestServed = 0
  readonly #refusals: Record<Refusal, number> = {
    FST_POOL_ACQUIRE_TIMEOUT: 0,
    FST_POOL_CONNECT_FAILED: 0,
    FST_POOL_QUEUE_FULL: 0,
    FST_POOL_OVERLOADED: 0,
    FST_POOL_CIRCUIT_OPEN: 0,
    FST_POOL_CLOSED: 0,
    FST_POOL_ABORTED: 0,
  }

  /** What hooks threw: callers get it as it is. */
  readonly #own = new WeakSet<object>()
  readonly #openers: Array<{ readonly target: number, settled: boolean }> = []
  #drains: Array<{ settled: boolean, readonly leases: readonly Held[] }> = []
  /** When `health()` was called last. */
  #askedAt = -Infinity
  /** Connections made by the last rest, and creates that had failed when the last of them came. */
  #createdAtRest = 0
  #errorsAtConnect = 0
  /** In which batch a validation was answered last. */
  #answeredIn = -1
  #healths: Array<{ by: number, settled: boolean }> = []
  readonly #counted: Array<{ readonly event: PoolEventName, count: number }> = []
  readonly #connected = new Set<number>()
  #connects = 0
  /** The longest that a connect took. */
  #slowest = -Infinity
  readonly #disconnected = new Set<number>()
  /** Calls of the pool from within its own listeners: each one may set off others. */
  #budget = 12

  // What was asked of the pool as a whole.
  #min: number
  #max: number
  #generation = 0
  #suspendedIn: number | undefined
  #started = false
  #draining = false
  #close: {
    promise: Promise<void> | undefined
    readonly at: number
    readonly timeout: number
    readonly grace: number
    resolved: boolean
  } | undefined

  /** Counts the rests. What happened in an earlier batch, everybody knows. */
  #batch = 0
  /** The batch in which leases were interrupted last. */
  #interruptedIn = -1
  /** When `onAcquire` refused a new connection last. */
  #refusedAt = -Infinity
  /** When the latest validation that ended in silence began. */
  #silentSince = -Infinity
  /** Nothing was done since the last rest: what is known of idle connections is so. */
  #rested = true
  #generationBefore = 0
  #refSince: number | undefined
  /** The caller within whose call the pool is. */
  #mayBeFast: string | undefined
  /** `onAcquire` has returned a promise. */
  #hookWaits = false
  #resized = false
  #evictedIn = -1
  #reactedIn = -1
  #askedBefore = 0
  /** The event loop stood still, and no timer has run since. */
  #stood = false
  /** Until then nothing is judged, since the event loop stood still. */
  #judgedAt = -Infinity
  /** How long the event loop stood still in all. */
  #stalls = 0
  #stoodUntil = -Infinity

  constructor (plan: Plan) {
    this.#plan = plan
    this.#clock = new SimulationClock(plan.seed)
    const { max = 10, min = 0 } = plan.options
    this.#min = min
    this.#max = max
    const hooks =
      Object.fromEntries(plan.hooks.map((name) => [name, (conn: Conn, info: HookInfo) => this.#hook(name, conn, info)]))
    this.#options = { ...deadlines, ...plan.options }
    this.#pool = new Pool<Conn>(this.#connector(), {
      ...plan.options,
      ...hooks,
      name: 'sim',
      url: `fake://user:${secrets.url}@host/`,
      connection: { password: secrets.password },
    }, this.#clock)
    this.#pool.on('connect', ({ id, took }) => {
      this.#slowest = Math.max(this.#slowest, took)
      if (this.#connected.has(id) || this.#disconnected.has(id)) this.#violate(`an event connect of ${id} too many`)
      this.#connected.add(id)
      this.#connects++
      this.#failures = 0
      this.#failingSince = Infinity
    })
    this.#pool.on('circuit', ({ from, to }) => { if (from === 'closed' && to === 'open') this.#openedAt = this.#clock.now() })
    this.#pool.on('disconnect', ({ id }) => {
      // Of one that was there, but whose `onConnect` failed, it is the only event.
      if (this.#disconnected.has(id)) this.#violate(`two events disconnect of ${id}`)
      this.#disconnected.add(id)
      this.#connected.delete(id)
    })
    for (const { event, behaviour } of plan.listeners) this.#listen(event, behaviour)
  }

  async live (): Promise<void> {
    try {
      for (const { action, rest } of this.#plan.steps) {
        this.#note(action, rest ? '' : ' (no rest)')
        if (action.do === 'advance') {
          await this.#advance(action.ms)
        } else if (action.do === 'stall') {
          await settle()
          this.#rest()
          this.#stall(action.ms)
          if (rest) await this.#advance(1)
        } else {
          // Each caller has an async context of its own: nobody else's code may ever see it.
          store.run(`step ${this.#history.length}`, () => { this.#act(action) })
          this.#rested = rest && !this.#stood
          if (!rest) continue
          if (this.#stood) {
            await this.#advance(1)
            continue
          }
          await settle()
          this.#rest()
        }
      }
      await this.#finish()
    } catch (error) {
      const steps =
        this.#history.map(({ at, what, more }) => `${at} ms: ${inspect(what, { breakLength: Infinity })}${more}`)
      throw new Error(`${error instanceof Error ? error.message : String(error)}\n${steps.join('\n')}`,
        { cause: error })
    }
  }

  #note (what: Action | 'the end', more = ''): void {
    this.#history.push({ at: this.#clock.now(), what, more })
  }

  // --- Steps ---------------------------------------------------------------------------------------------------------

  #act (action: Action): void {
    const pool = this.#pool
    switch (action.do) {
      case 'acquire':
      case 'use':
        return this.#ask(action.do, action.signal, action.timeout, action.holdTimeout)
      case 'tryAcquire':
        return this.#try()
      case 'move':
        return this.#move(this.#pick(this.#held, action.which))
      case 'offer':
        return this.#offer(this.#pick(this.#held, action.which))
      case 'abort':
        return this.#abort(action.which)
      case 'release':
      case 'destroy':
      case 'fail':
      case 'abandon':
        return this.#endLease(this.#pick(this.#held, action.which), action.do)
      case 'stale':
        return this.#useStale(this.#pick(this.#ended, action.which))
      case 'die':
      case 'break':
      case 'isBrokenThrows':
        return this.#hurt(this.#pick([...this.#conns].filter((conn) => conn.destroyedFor === undefined), action.which),
          action.do)
      case 'answer':
        return this.#pick(this.#calls.filter(({ outcome }) => outcome === 'slow' || outcome === 'deaf'),
          action.which)?.answer(action.how)
      case 'transact':
        return this.#transact(this.#pick(this.#held, action.which), action.retry, action.commitTimeout)
      case 'nest': {
        const around = this.#pick([...this.#runs].filter(({ within }) => within !== undefined), action.which)
        return around?.within!(() => { this.#transact(around.held, 0, undefined, around) })
      }
      case 'hold':
        return this.#hold(this.#pick(this.#held, action.which), action.commitTimeout)
      case 'conclude':
        return this.#pick([...this.#runs].filter(({ conclude }) => conclude !== undefined),
          action.which)?.conclude!(action.how)
      case 'evict':
        if (action.used) this.#interruptedIn = this.#batch
        if (action.used) for (const { conn } of this.#held) conn.lost = true
        if (action.used) for (const conn of this.#conns) conn.interrupted = true
        if (!action.idle || action.used) {
          this.#generation++
          // A long pause ends.
          this.#lastFailure = this.#failedAt = -Infinity
          this.#answer = undefined
          // One that has just failed, and whose listener evicts, was counted by the pool.
          if (this.#reactedIn === this.#batch) this.#failingSince = Math.min(this.#failingSince, this.#clock.now())
          // What is being created is stale too, and whether it fails says nothing about the next one.
          for (const { create, made } of this.#conns) create.unwanted ||= !made
          for (const call of [...this.#calls, ...this.#failing]) {
            call.unwanted ||= call.method === 'create' && !call.failed && call.deadline >= this.#clock.now()
          }
        }
        this.#evictedIn = this.#batch
        for (const conn of this.#conns) {
          if (conn.idleSince !== undefined && conn.busy === undefined &&
          !conn.validated) conn.evicted = true
        }
        return pool.evict({ idle: action.idle, used: action.used })
      case 'resize':
        return this.#resize(action.min, action.max)
      case 'suspend':
        this.#suspendedIn ??= this.#batch
        return pool.suspend()
      case 'resume':
        this.#suspendedIn = undefined
        return pool.resume()
      case 'open':
        return this.#open()
      case 'drain': {
        this.#draining = true
        const drain = { settled: false, leases: this.#held.slice() }
        this.#drains.push(drain)
        pool.drain().then(() => { drain.settled = true })
        return
      }
      case 'close':
        return this.#shut(action.timeout)
      case 'health': {
        const health = { by: this.#clock.now() + this.#options.validateTimeout, settled: false }
        this.#healths.push(health)
        this.#askedAt = this.#clock.now()
        pool.health().then(({ latency, status, stats }) => {
          health.settled = true
          const isThere = stats.idle + stats.used > 0
          if (status === 'up' && stats.created === 0) this.#violate('health() says up, and no connection was ever made')
          const hadNews = stats.created !== this.#createdAtRest || this.#answeredIn === this.#batch
          if (status === 'up' && !isThere && !hadNews && stats.createErrors > this.#errorsAtConnect) {
            this.#violate('health() says up, and there is no connection, and the last create failed')
          }
          if (latency !== null &&
            !this.#plan.can.validate) this.#violate('health() tells a latency, and there is no validate')
        })
        return
      }
      case 'obstruct':
        this.#way = { until: this.#clock.now() + action.ms, throws: action.throws }
        return
      case 'driver':
        return this.#driver?.({ name: 'it' })
    }
  }

  /**
   * What is under way gets the time back for which the next timer will be late, where that is much. Callers' own
   * deadlines stand, and are judged a turn later.
   */
  #stall (ms: number): void {
    // Of two stalls in one turn the pool sees one.
    if (this.#stood) return
    this.#stood = true
    this.#rested = false
    this.#stalls += ms
    // A tick has seen it; a stall behind it does not change that.
    for (const call of this.#calls) call.doubted = this.#isDoubted(call)
    this.#clock.stall(ms)
    this.#stoodUntil = this.#clock.now()
    // The pool looked no more meanwhile.
    this.#metAt += ms
    const now = this.#clock.now()
    const late = now - this.#clock.dueAt
    this.#judgedAt = now + 1
    if (late < 20) return
    const granted = (since: number) => Math.max(0, Math.min(late, now - since))
    for (const call of this.#calls) {
      const { method, conn } = call
      if (method === 'onAcquire' && conn!.cleaning === undefined) continue
      const level = method === 'commit' ? conn!.open[0] : undefined
      const since = method === 'onConnect' && !conn!.made
        ? conn!.create.since
        : conn?.cleaning ?? level?.run?.concludedAt ?? call.since
      call.deadline += granted(since)
      call.stalled ||= late >= 100
      if (method === 'validate') call.since = late < 100 ? call.since + granted(call.since) : now
    }
    for (const conn of this.#conns) {
      if (!conn.made && !conn.create.failed) conn.create.deadline += granted(conn.create.since)
      if (conn.cleaning !== undefined) conn.cleaning += granted(conn.cleaning)
    }
    const open = [...this.#conns].flatMap((conn) => conn.open.flatMap(({ run }) => run ?? []))
    for (const run of new Set([...this.#runs, ...open])) {
      if (run.concludedAt < Infinity) run.concludedAt += granted(run.concludedAt)
    }
    for (const health of this.#healths) health.by += late
    for (const held of this.#held) held.stood += granted(held.since)
  }

  /** One who waits, if there is one; else one for whom it comes too late. */
  #abort (which: number): void {
    const waiting = this.#signals.filter(({ settled }) => !settled)
    this.#pick(waiting.length > 0 ? waiting : this.#signals, which)?.controller?.abort(new Error('the caller left'))
  }

  #pick<T> (from: readonly T[], which: number): T | undefined {
    return from[which % Math.max(1, from.length)]
  }

  /** It goes back as soon as somebody waits. */
  #offer (held: Held | undefined): void {
    if (held === undefined || held.finish !== undefined || this.#offered.has(held)) return
    this.#offered.add(held)
    held.offeredAt = this.#clock.now()
    lendable(held.lease, () => {
      this.#offered.delete(held)
      if (!held.live || held.lease.ended) return false
      // Only where somebody waits, or is about to.
      if (this.#mayBeFast === undefined && this.#pool.stats().pending === 0) this.#violate('a lease is recalled for nobody')
      this.#recalls++
      this.#endLease(held, 'release')
      return true
    })
  }

  /** Its borrower tells of its progress from now on, and has just made some. */
  #move (held: Held | undefined): void {
    if (held === undefined || held.holdTimeout === 0) return
    held.moved++
    if (held.moved === 1) lentTo(held.lease, held)
    held.endsBy = this.#clock.now() + (held.restarts + 1) * (held.holdTimeout + 201)
  }

  #ask (
    kind: Ask['kind'], how: 'none' | 'live' | 'aborted', timeout: number | undefined, holdTimeout?: number | undefined
  ): void {
    const n = ++this.#n
    const holder = `caller ${n}`
    const now = this.#clock.now()
    const controller = how === 'none' ? undefined : new AbortController()
    if (how === 'aborted') controller!.abort(new Error('the caller left'))
    const { pending, ...stats } = this.#pool.stats()
    const { maxPending } = this.#options
    // Whoever finds a connection, be it in the pool's own hands, or room for one, does not wait in line for it.
    const served = stats.idle + stats.creating + Math.max(0, stats.used - this.#held.length) +
      Math.max(0, this.#max - stats.creating - stats.idle - stats.used - stats.closing)
    // The first promise ever that `onAcquire` returns costs its caller the idle connection.
    const idle = this.#plan.hooks.includes('onAcquire') && !this.#hookWaits
      ? 0
      : Math.min(stats.idle, [...this.#conns].filter((conn) => this.#isFit(conn)).length)
    const ask: Ask = {
      n,
      holder,
      kind,
      since: now,
      deadline: now + (timeout ?? this.#options.acquireTimeout),
      controller,
      isFull: pending >= maxPending,
      mustBeRefused: pending >= maxPending + served,
      findsIdle: this.#rested && idle > 0 && pending === 0 && this.#suspendedIn === undefined && !this.#isObstructed,
      holdTimeout: holdTimeout ?? 0,
      settled: false,
      prepared: false,
      interrupted: false,
      awayIn: -1,
      awayAtRest: false,
    }
    this.#asks.add(ask)
    if (controller !== undefined) this.#signals.push(ask)
    const label = this.#label(n, holder)
    const options = {
      ...(label !== undefined && { holder: label }),
      ...(controller && { signal: controller.signal }),
      ...(timeout !== undefined && { timeout }),
      ...(holdTimeout !== undefined && { holdTimeout }),
    }
    const recalls = this.#recallsBefore = this.#recalls
    this.#pendingBefore = pending
    const outer = this.#mayBeFast
    this.#mayBeFast = holder
    // The caller's own context goes on behind the await.
    store.run(holder, () => {
      const mine = () => {
        if (store.getStore() !== holder) this.#violate(`${holder} lost its async context: it sees ${store.getStore()}`)
      }
      if (kind === 'acquire') {
        this.#pool.acquire(options).then((lease) => {
          mine()
          this.#served(ask, lease, undefined)
        }, (error: unknown) => {
          mine()
          this.#refused(ask, error)
        })
      } else {
        const failure = new Error('the function failed')
        this.#pool.use((conn, lease) => new Promise<number>((resolve, reject) => {
          mine()
          if (conn !== lease.connection) this.#violate('use() gave a connection that is not its lease\'s')
          this.#served(ask, lease, () => { n % 3 === 0 ? reject(failure) : resolve(n) })
        }), options).then((value) => {
          mine()
          if (value !== n) this.#violate(`use() resolved to ${value}`)
        }, (error: unknown) => {
          mine()
          if (error !== failure) this.#refused(ask, error)
        })
      }
    })
    ask.interrupted = this.#n !== n || this.#recalls !== recalls
    this.#mayBeFast = outer
  }

  /** In each form that it may have; hooks need one to know their caller by. */
  #label (n: number, holder: string): HolderLabel | undefined {
    if (n % 4 === 0) return { route: 'GET /', id: holder }
    return n % 4 === 1 && !this.#plan.hooks.includes('onAcquire') ? undefined : holder
  }

  /** It is idle, and nothing speaks against lending it. */
  #isFit (conn: Conn): boolean {
    const { maxLifetime = 0 } = this.#options
    return conn.idleSince !== undefined && conn.busy === undefined && conn.destroyedFor === undefined && !conn.broken &&
      !conn.isBrokenThrows &&
      (maxLifetime === 0 || this.#clock.now() - conn.madeAt < 0.9 * maxLifetime)
  }

  #try (): void {
    const n = ++this.#n
    const holder = `try ${n}`
    const outer = this.#mayBeFast
    this.#recallsBefore = this.#recalls
    this.#pendingBefore = this.#pool.stats().pending
    this.#mayBeFast = holder
    try {
      const label = this.#label(n, holder)
      const lease = this.#pool.tryAcquire(label === undefined ? undefined : { holder: label })
      if (lease !== null) this.#lent(n, holder, lease, undefined)
    } catch (error) {
      if (!this.#isOwn(error)) this.#violate(`tryAcquire threw ${String(error)}`)
    }
    this.#mayBeFast = outer
  }

  #served (ask: Ask, lease: Lease<Conn>, finish: (() => void) | undefined): void {
    if (ask.settled) return this.#violate(`${ask.holder} settled twice`)
    this.#asks.delete(ask)
    ask.settled = true
    this.#longestWait = Math.max(this.#longestWait, this.#clock.now() - ask.since)
    if (this.#clock.now() > Math.max(ask.deadline, this.#judgedAt) +
      1) this.#violate(`${ask.holder} was served ${this.#clock.now() - ask.deadline} ms after its deadline`)
    this.#lent(ask.n, ask.holder, lease, finish, ask)
  }

  #lent (n: number, holder: string, lease: Lease<Conn>, finish: (() => void) | undefined, ask?: Ask): void {
    this.#leases++
    // Who had a connection prepared for it has had its turn before.
    if (ask?.awayAtRest !== true) this.#latestServed = Math.max(this.#latestServed, n)
    if (lease.ended) {
      if (this.#close === undefined && this.#interruptedIn !== this.#batch) this.#violate(`the lease of ${holder} had ended when it came`)
      return
    }
    const conn = lease.connection
    const now = this.#clock.now()
    const { maxUses = 0, maxLifetime = 0, reset } = this.#options
    conn.loans++
    if (lease.pool !== 'sim') this.#violate(`a lease of a pool '${lease.pool}'`)
    if (conn.lease?.live === true) this.#violate(`connection ${conn.id} is lent to ${holder}, and to another`)
    if (conn.destroyedFor !== undefined) this.#violate(`connection ${conn.id} was destroyed, and then lent`)
    if (conn.busy !== undefined) this.#violate(`connection ${conn.id} was lent while its ${conn.busy.method} was under way`)
    if (conn.broken && conn.brokenIn < this.#batch) this.#violate(`connection ${conn.id} was broken, and then lent`)
    if (maxUses > 0 && conn.loans > maxUses) this.#violate(`connection ${conn.id} was lent ${conn.loans} times`)
    if (maxLifetime > 0 && ask?.prepared !== true && now - conn.madeAt > maxLifetime + 101) {
      this.#violate(`connection ${conn.id} was lent ${now - conn.madeAt} ms old`)
    }
    if (conn.create.generation < this.#generationBefore &&
      ask?.prepared !== true) this.#violate(`connection ${conn.id} was stale, and then lent`)
    if (this.#suspendedIn !== undefined && this.#suspendedIn < this.#batch && ask?.prepared !== true) {
      this.#violate('a suspended pool lent a connection')
    }
    if (this.#close !== undefined && this.#close.resolved) this.#violate('a closed pool lent a connection')
    if (conn.open.length > 0) this.#violate(`connection ${conn.id} was lent to ${holder} with an open transaction`)
    if (conn.suspectIn < this.#batch) this.#violate(`connection ${conn.id} was suspect, and then lent to ${holder}`)
    if (this.#plan.can.obstacle && conn.clearIn < this.#batch && ask?.prepared !== true) {
      this.#violate(`connection ${conn.id} was lent to ${holder}, and something is in the way, or was not asked for`)
    }
    conn.clearIn = -1
    this.#leaveIdle(conn)
    if (this.#plan.can.reset && reset !== 'none' && conn.dirty !== undefined && conn.dirty !== holder) {
      this.#violate(`connection ${conn.id} was lent to ${holder} with the traces of ${String(conn.dirty)}`)
    }
    if (conn.bare && this.#plan.hooks.includes('onConnect') && reset === 'session') {
      this.#violate(`connection ${conn.id} was lent without what onConnect sets`)
    }
    if (this.#plan.hooks.includes('onAcquire') && conn.dirty !== holder) {
      this.#violate(`connection ${conn.id} was lent to ${holder} and onAcquire had not run for it`)
    }
    conn.dirty = holder
    conn.cleaning = undefined
    conn.ending = undefined
    conn.preparedUntil = Infinity
    conn.evicted = false
    const { holdTimeout = 0 } = ask ?? {}
    const held: Held = {
      lease,
      conn,
      n,
      holder,
      since: now,
      finish,
      live: true,
      leaked: false,
      holdTimeout,
      restarts: 2,
      inVain: undefined,
      moved: 0,
      stood: 0,
      offeredAt: Infinity,
      endsBy: holdTimeout === 0 ? Infinity : now + holdTimeout + 101,
    }
    conn.lease = held
    this.#held.push(held)
  }

  /** It is about to be lent. */
  #leaveIdle (conn: Conn): void {
    const { validateAfter } = this.#options
    const silent = this.#clock.now() - conn.aliveAt
    const asked = conn.idleSince === undefined || conn.validated || !this.#plan.can.validate
    if (!asked && silent >= validateAfter + (validateAfter > 0 ? 101 : 0)) {
      this.#violate(`connection ${conn.id} was silent for ${silent} ms, and then lent without being validated`)
    }
    conn.idleSince = conn.surplusSince = undefined
    conn.validated = false
  }

  #countFailed ({ since }: Ask): void {
    this.#failed++
    if (this.#clock.now() > since) this.#inVain++
  }

  #refused (ask: Ask, error: unknown): void {
    if (ask.settled) return this.#violate(`${ask.holder} settled twice`)
    this.#asks.delete(ask)
    ask.settled = true
    const now = this.#clock.now()
    this.#longestWait = Math.max(this.#longestWait, now - ask.since)
    if (now > Math.max(ask.deadline, this.#judgedAt) + 1) this.#violate(`${ask.holder} was refused ${now - ask.deadline} ms after its deadline`)
    if (this.#isOwn(error)) return this.#countFailed(ask)
    if (!(error instanceof PoolError)) return this.#violate(`${ask.holder} was refused with ${String(error)}`)
    if (tells(error)) this.#violate(`an error tells a secret: ${inspect(error)}`)
    const isTaken = this.#close !== undefined || this.#interruptedIn === this.#batch
    if (ask.kind === 'use' && error.code === 'FST_POOL_LEASE_RELEASED' && isTaken) {
      // It was served, and close() came to its deadline, or evict() came, before the function could be called.
      this.#leases++
      return
    }
    this.#countFailed(ask)
    if (!(error.code in this.#refusals)) return this.#violate(`${ask.holder} was refused with ${error.code}`)
    const code = error.code as Refusal
    const turnedAway = code === 'FST_POOL_CIRCUIT_OPEN' && now > ask.since
    if (code === 'FST_POOL_ACQUIRE_TIMEOUT' || code === 'FST_POOL_CONNECT_FAILED' || turnedAway) this.#expiredAt = now
    this.#refusals[code]++
    const fits = {
      FST_POOL_ACQUIRE_TIMEOUT: now >= ask.deadline,
      FST_POOL_CONNECT_FAILED: now >= ask.deadline || this.#plan.can.permanent,
      FST_POOL_QUEUE_FULL: ask.interrupted || (now === ask.since && ask.isFull && !ask.findsIdle),
      FST_POOL_OVERLOADED: this.#options.overload !== false && now === ask.since,
      FST_POOL_CIRCUIT_OPEN: this.#options.circuit !== false,
      FST_POOL_CLOSED: this.#close !== undefined,
      FST_POOL_ABORTED: ask.controller?.signal.aborted === true && error.cause === ask.controller.signal.reason,
    }[code]
    // What listeners did first may have ended it.
    const named = error.message.includes('in the way is')
    if (code === 'FST_POOL_ACQUIRE_TIMEOUT' && !ask.prepared && this.#reactedIn !== this.#batch && !this.#stood &&
      (named ? now > this.#metAt + 25 : this.#hinderedIn === this.#batch)) {
      this.#violate(`something was ${named ? 'not ' : ''}in the way of ${ask.holder}, and it is told: ${error.message}`)
    }
    if (!fits) this.#violate(`${ask.holder} was refused with ${code} at ${now}: ${error.message} (${inspect(ask, { depth: 0 })})`)
  }

  #isOwn (error: unknown): boolean {
    return typeof error === 'object' && error !== null && this.#own.has(error)
  }

  #endLease (held: Held | undefined, how: 'release' | 'destroy' | 'fail' | 'abandon'): void {
    if (held === undefined) return
    this.#held.splice(this.#held.indexOf(held), 1)
    this.#end(held)
    held.live = false
    const { lease, finish, conn } = held
    conn.ending = how
    if (how === 'release' && !lease.ended && (conn.open.length > 0 || conn.busy !== undefined) && conn.destroyedFor === undefined) {
      // From now on there is one deadline: that of the reset.
      conn.cleaning = this.#clock.now()
      if (conn.busy !== undefined) conn.busy.deadline = conn.cleaning + this.#options.resetTimeout
    }
    if (how === 'fail') conn.wronged = true
    if (how === 'release') finish === undefined ? lease.release() : finish()
    else if (how === 'destroy') lease.destroy()
    else if (how === 'fail') lease.destroy(this.#failure('the borrower'))
    else abandon(lease)
    // A `use()` gives back some microtasks later, and then what it gives back has ended already.
    if (how !== 'release') finish?.()
    if (!lease.ended && finish === undefined) this.#violate('a lease had not ended behind its end')
  }

  // --- Transactions --------------------------------------------------------------------------------------------------

  /** @param around it is called from within that one */
  #transact (held: Held | undefined, retry: number, commitTimeout: number | undefined, around?: Run): void {
    if (held === undefined) return
    const { lease, conn } = held
    const token = {}
    const context = store.getStore()
    const run: Run = {
      held,
      retry,
      commitTimeout,
      contexts: new Set([context]),
      concludedAt: Infinity,
      level: undefined,
      conclude: undefined,
      within: undefined,
    }
    const fn = (inner: Conn) => new Promise<object>((resolve, reject) => {
      if (store.getStore() !== context) this.#violate('the function of a transaction lost its async context')
      if (inner !== conn) this.#violate('a transaction on another connection')
      if (lease.ended) this.#violate('a transaction of a lease that has ended was begun')
      if (run.level !== undefined &&
        (run.level.unanswered || run.level.committed !== false)) this.#violate('a transaction that may be stored was run again')
      this.#enter(run, conn.open.at(-1), commitTimeout ?? 0)
      if (run.level === undefined) this.#violate('a transaction that is not open')
      if (run.conclude !== undefined) this.#violate('the function of a transaction runs twice at the same time')
      run.conclude = (how) => {
        run.conclude = run.within = undefined
        run.concludedAt = this.#clock.now()
        if (how === 'ok') return resolve(token)
        const error = this.#failure('the function of a transaction')
        if (this.#n % 2 === 0) this.#transient.add(error)
        reject(error)
      }
      const resource = new AsyncResource('FUNCTION')
      run.within = (call) => resource.runInAsyncScope(call)
    })
    this.#runs.add(run)
    const promise = around === undefined ||
      this.#n % 2 === 0
      ? lease.transaction(fn, { retry, commitTimeout })
      : this.#pool.transaction(fn, { retry })
    this.#follow(run, promise, (value) => {
      if (value !== token) this.#violate('a transaction resolved to something else')
      if (run.level?.committed !== true &&
        run.level?.committed !== 'unknown') this.#violate('a transaction resolved, and was not committed')
    })
  }

  #enter (run: Run, level: Level | undefined, commitTimeout: number): void {
    run.level = level
    run.concludedAt = Infinity
    if (level === undefined) return
    level.run = run
    const [outermost] = run.held.conn.open
    level.commitTimeout = outermost === level ? commitTimeout : outermost!.commitTimeout
  }

  #hold (held: Held | undefined, commitTimeout: number | undefined): void {
    // A scope holds one, and one only.
    if (held === undefined || [...this.#runs].some((run) => run.held === held)) return
    const run: Run = {
      held,
      retry: 0,
      commitTimeout,
      contexts: new Set([store.getStore()]),
      concludedAt: Infinity,
      level: undefined,
      conclude: undefined,
      within: undefined,
    }
    this.#runs.add(run)
    this.#follow(run, hold(held.lease, { readOnly: this.#n % 2 === 0, commitTimeout }), (transaction) => {
      if (held.lease.ended) return
      this.#enter(run, held.conn.open[0], commitTimeout ?? this.#options.commitTimeout)
      if (run.level === undefined) this.#violate('a transaction is held, and not open')
      this.#runs.add(run)
      run.conclude = (how) => {
        run.conclude = undefined
        run.concludedAt = this.#clock.now()
        run.contexts.add(store.getStore())
        this.#follow(run, how === 'ok' ? transaction.commit() : transaction.rollback(), () => {
          if (run.level?.committed !== (how === 'ok') &&
            run.level?.committed !== 'unknown') this.#violate(`a held transaction was told ${how}, and committed is ${run.level?.committed}`)
        })
      }
    })
  }

  #follow<T> (run: Run, promise: Promise<T>, resolved: (value: T) => void): void {
    promise.then((value) => {
      this.#runs.delete(run)
      resolved(value)
    }, (error: unknown) => {
      this.#runs.delete(run)
      const { level } = run
      const unknown = level !== undefined && (level.unanswered || level.inDoubtAtEnd)
      if (level?.committed === true) this.#violate(`a transaction was committed, and rejected with ${String(error)}`)
      if (run.conclude !== undefined &&
        run.level !== undefined) this.#violate('a transaction rejected while its function ran')
      const { code } = error as { code?: PoolErrorCode }
      if (tells(error) && !this.#isOwn(error)) this.#violate(`an error tells a secret: ${inspect(error)}`)
      if (unknown !== (code === 'FST_POOL_COMMIT_UNKNOWN')) this.#violate(`a commit is ${unknown ? '' : 'not '}in doubt, and rejected with ${inspect(error)}`)
      const fits = code === 'FST_POOL_COMMIT_UNKNOWN' ||
        (code === 'FST_POOL_COMMIT_TIMEOUT' && level!.committed === false && this.#isOverdue(level!)) ||
          this.#isOwn(error) || (code === 'FST_POOL_LEASE_RELEASED' && run.held.lease.ended) ||
            code === 'FST_POOL_ACQUIRE_TIMEOUT' ||
        (code === 'FST_POOL_NOT_SUPPORTED' && !this.#plan.can.transactions) ||
        // Within a transaction that is held.
        (code === 'FST_POOL_BAD_OPTIONS' && (run.retry > 0 || (run.commitTimeout ?? 0) > 0))
      if (!fits) this.#violate(`a transaction rejected with ${inspect(error)}`)
    })
  }

  /** Its commit, or what was begun within it, has not ended by its deadline. */
  #isOverdue ({ run, commitTimeout }: Level): boolean {
    return commitTimeout > 0 && run !== undefined && this.#clock.now() >= run.concludedAt + commitTimeout
  }

  /** What the connector tells of a commit. */
  #isInDoubt (level: Level): boolean {
    return level.unanswered || (level.committing && this.#clock.now() >= level.writtenAt)
  }

  #transactions (): Transactions<Conn> {
    const { acquireTimeout, resetTimeout } = this.#options
    let commits = 0
    const opened = (conn: Conn): Transaction<Conn> => {
      const level: Level = {
        committed: false,
        committing: false,
        writtenAt: Infinity,
        unanswered: false,
        inDoubtAtEnd: false,
        run: undefined,
        commitTimeout: 0,
      }
      const isInDoubt = () => this.#isInDoubt(level)
      if (conn.destroyedFor === undefined) conn.open.push(level)
      const mustBeInnermost = (what: string) => {
        if (conn.open.at(-1) !== level) this.#violate(`a ${what} of a transaction with others open in it, or of none`)
      }
      const transaction: Transaction<Conn> = {
        connection: conn,
        commit: () => {
          mustBeInnermost('commit')
          const isOutermost = conn.open[0] === level
          const [now, { run, commitTimeout }] = [this.#clock.now(), level]
          level.committing = true
          level.writtenAt = now + [0, 60, Infinity][(this.#plan.seed + commits++) % 3]!
          return this.#askTransaction('commit', conn, commitTimeout === 0 ? Infinity : run!.concludedAt + commitTimeout - now, undefined, () => {
            level.committing = false
            if (conn.destroyedFor !== undefined) level.committed = level.inDoubtAtEnd ? 'unknown' : false
            else level.committed = true
            conn.open.pop()
          }, () => {
            const written = this.#isInDoubt(level)
            level.committing = false
            conn.refusedIn = this.#batch
            if (!isOutermost || conn.destroyedFor !== undefined) return
            // A connector that does not tell: it is in doubt where the connection is dead.
            level.unanswered = this.#plan.can.inDoubt
              ? written && (this.#plan.seed + commits) % 2 === 0
              : conn.broken || conn.isBrokenThrows
            if (!level.unanswered) return
            level.committed = 'unknown'
            conn.lost = true
          })
        },
        rollback: () => {
          if (conn.lease?.live === true) mustBeInnermost('rollback')
          return this.#askTransaction('rollback', conn, resetTimeout, undefined, () => {
            if (conn.open.includes(level)) conn.open.length = conn.open.indexOf(level)
          })
        },
        savepoint: () => {
          mustBeInnermost('savepoint')
          return this.#askTransaction('savepoint', conn, acquireTimeout, undefined, () => opened(conn))
        },
      }
      return this.#plan.can.inDoubt ? Object.defineProperty(transaction, 'inDoubt', { get: isInDoubt }) : transaction
    }
    return {
      isolation: [],
      readOnly: true,
      isTransient: (error) => this.#transient.has(error as object),
      begin: (conn, _, signal) => {
        if (conn.open.length > 0) this.#violate(`a begin on connection ${conn.id}, and one is open`)
        return this.#askTransaction('begin', conn, acquireTimeout, signal, () => opened(conn))
      },
    }
  }

  #askTransaction<T> (
    method: Phase, conn: Conn, timeout: number, signal: AbortSignal | undefined, done: () => T,
    refused: () => void = () => {}
  ): Promise<T> {
    // `use()` gives back a moment after its function has ended.
    const lent = conn.lease?.lease.ended === false
    if (lent) this.#askedBy(conn, method)
    else this.#foreign(method)
    if (conn.destroyedFor !== undefined) this.#violate(`a ${method} on connection ${conn.id} behind its end`)
    if (conn.busy !== undefined) this.#violate(`a ${method} on connection ${conn.id} while its ${conn.busy.method} was under way`)
    if (!lent && method !== 'rollback') this.#violate(`a ${method} on connection ${conn.id}, and its lease has ended`)
    const outcome = this.#draw(method)
    const deadline = conn.cleaning === undefined
      ? this.#clock.now() + timeout
      : conn.cleaning + this.#options.resetTimeout
    // One that gave up at its deadline is as one that did not come back.
    const failed = (until: number) => { conn.lost ||= method === 'rollback' || this.#clock.now() >= until }
    if (outcome === 'throw') {
      failed(Infinity)
      refused()
      throw this.#failure(method)
    }
    return this.#call<T>(method, outcome, { conn, deadline, ...(signal && { signal }) }, (how, call) => {
      if (how === 'ok') return done()
      failed(call.deadline)
      refused()
      // Never given: the call rejects.
      return undefined as T
    })
  }

  /** Whoever asked for it: its trace has it. What the pool does by itself, behind the lease, belongs to nobody. */
  #askedBy (conn: Conn, method: Phase): void {
    const seen = store.getStore()
    const isCallers = [...this.#runs].some(({ held, contexts }) => held.conn === conn && contexts.has(seen))
    if (!isCallers) this.#violate(`a ${method} sees the async context of ${seen}, who has not asked for it`)
    store.enterWith(method)
  }

  /** What a lease that has ended does must touch nobody. */
  #useStale (held: Held | undefined): void {
    if (held === undefined || !held.lease.ended) return
    const books = () => JSON.stringify([
      this.#pool.stats(), this.#calls.length, this.#creates, this.#destroyed,
      this.#held.map(({ lease }) => lease.ended),
    ])
    const before = books()
    const { lease } = held
    lease.release()
    lease.destroy()
    lease.destroy(new Error('stale'))
    lease[Symbol.dispose]()
    abandon(lease)
    try {
      this.#violate(`a stale lease gave connection ${lease.connection.id}`)
    } catch (error) {
      if ((error as { code?: unknown })
        .code !== 'FST_POOL_LEASE_RELEASED') this.#violate(`a stale lease threw ${String(error)}`)
    }
    if (books() !== before) this.#violate('a stale lease touched something')
  }

  #hurt (conn: Conn | undefined, how: 'die' | 'break' | 'isBrokenThrows'): void {
    // Of one that came this moment, nobody can say whether it was hurt before the pool looked.
    if (conn === undefined || conn.cameIn === this.#batch) return
    if (how === 'die' ? conn.die === undefined : !this.#plan.can.isBroken) return
    if (how === 'isBrokenThrows') conn.isBrokenThrows = true
    conn.broken = true
    conn.brokenIn = Math.min(conn.brokenIn, this.#batch)
    if (how === 'die') {
      conn.dead = true
      // Drivers tell more than once: an error, then the end.
      conn.die?.(this.#failure('the connection'))
      conn.die?.()
    }
  }

  #resize (min: number | undefined, max: number | undefined): void {
    const change = { ...(min !== undefined && { min }), ...(max !== undefined && { max }) }
    this.#resized = true
    const bad = (min ?? this.#min) > (max ?? this.#max)
    try {
      // Before: creates may start within the call.
      if (!bad) {
        this.#min = min ?? this.#min
        this.#max = max ?? this.#max
      }
      this.#pool.resize(change)
      if (bad) this.#violate('resize() took a min above max')
    } catch (error) {
      if (!bad || (error as { code?: unknown }).code !== 'FST_POOL_BAD_OPTIONS') throw error
    }
  }

  #open (): void {
    const opener = { target: Math.max(1, this.#min), settled: false }
    this.#openers.push(opener)
    if (!this.#draining) this.#started = true
    this.#pool.open().then(() => {
      opener.settled = true
    }, (error: unknown) => {
      opener.settled = true
      const { code } = error as { code?: unknown }
      if (tells(error)) this.#violate(`an error of open() tells a secret: ${inspect(error)}`)
      if (code === 'FST_POOL_CLOSED'
        ? !this.#draining
        : code !== 'FST_POOL_CONNECT_FAILED') this.#violate(`open() was refused with ${String(error)}`)
    })
  }

  #shut (timeout: number | undefined): void {
    const given = timeout ?? this.#options.closeTimeout
    const at = this.#clock.now()
    const before = this.#close
    this.#draining = true
    const grace = at + given - Math.min(this.#options.destroyTimeout, given / 4)
    const close = before ?? { promise: undefined, at, timeout: given, grace, resolved: false }
    // Known before the call: listeners run within it.
    this.#close = close
    const promise = this.#pool.close(timeout === undefined ? {} : { timeout })
    if (before !== undefined) {
      if (before.promise !== undefined &&
        promise !== before.promise) this.#violate('close() gave another promise the second time')
      return
    }
    close.promise = promise
    promise.then(() => {
      close.resolved = true
      const took = this.#clock.now() - close.at
      if (took > Math.ceil(close.timeout) + this.#stalls +
        101) this.#violate(`close() took ${took} ms, its timeout was ${close.timeout}`)
    })
  }

  /** Lets time pass, with a rest after each timer; those that answer late do so on the way. */
  async #advance (ms: number): Promise<void> {
    const end = this.#clock.now() + ms
    await settle()
    this.#rest()
    const [asked, delivered] = [this.#asked, this.#delivered]
    while (this.#clock.now() < end) {
      const next =
        Math.min(end, ...this.#calls.filter(({ outcome }) => outcome === 'late').map(({ deadline }) => deadline + 30))
      await this.#clock.advance(Math.max(0, next - this.#clock.now()), () => { this.#rest() })
      for (const call of this.#calls.slice()) {
        if (call.outcome === 'late' &&
          call.deadline + 30 <= this.#clock.now()) call.answer(call.since % 3 === 0 ? 'error' : 'ok')
      }
      await settle()
      this.#rest()
    }
    // More often at first, and where something else happens. Of each new connection it is asked once more.
    const times = this.#asked - asked - (this.#delivered - delivered)
    if (times > 40 + ms / 10) this.#violate(`what is in the way is asked ${times} times in ${ms} ms`)
  }

  /** Whatever happened: the pool closes, by its deadline, and nothing is left. */
  async #finish (): Promise<void> {
    this.#note('the end')
    await settle()
    this.#rest()
    this.#shut(undefined)
    await this.#advance(Math.ceil(this.#close!.timeout) + 101)
    if (!this.#close!.resolved) this.#violate(`close() did not resolve within its timeout of ${this.#close!.timeout} ms`)
    this.#rest()
    if (this.#closes !== (this.#plan.can.close === undefined
      ? 0
      : 1)) this.#violate(`the connector was closed ${this.#closes} times`)
    for (const { conn, lease } of this.#held) {
      if (!lease.ended) this.#violate('a lease outlived its pool')
      lease.release()
      if (conn.destroyedFor === undefined) this.#violate(`connection ${conn.id}, lent at the end, was not destroyed`)
    }
    // Now everything answers that has not yet, and what comes is destroyed at once.
    this.#calm = true
    while (this.#calls.length > 0) {
      for (const call of this.#calls.slice()) call.answer('ok')
      await settle()
      this.#rest()
    }
    await this.#advance(10_000)
    if (this.#conns.size > 0) this.#violate(`${this.#conns.size} connections are left`)
    // What runs in a transaction ends; each one may have others within it.
    for (let round = 0; round < 100 && this.#runs.size > 0; round++) {
      for (const run of [...this.#runs]) run.conclude?.('ok')
      await settle()
      this.#rest()
    }
    if (this.#runs.size > 0) this.#violate(`${this.#runs.size} transactions have not settled`)
    const { late } = this.#pool.stats()
    if (late !== 0) this.#violate(`stats() has ${late} late ones, and all have answered`)
    if (this.#pool.tryAcquire() !== null) this.#violate('tryAcquire lends from a closed pool')
    this.#ask('acquire', 'none', undefined)
    await settle()
    this.#rest()
  }

  // --- The connector and the hooks -----------------------------------------------------------------------------------

  #connector (): Connector<Conn> {
    const { can } = this.#plan
    return {
      system: 'simulation',
      create: (signal) => this.#create(signal),
      destroy: (conn, reason, signal) => this.#destroy(conn, reason, signal!),
      ...(can.permanent && { isPermanent: (error: unknown) => this.#isOwn(error) }),
      ...(can.validate && { validate: (conn: Conn, signal: AbortSignal) => this.#validate(conn, signal) }),
      ...(can.isBroken && { isBroken: (conn: Conn) => this.#isBroken(conn) }),
      ...(can.obstacle && { obstacle: (conn: Conn) => this.#obstacle(conn) }),
      ...(can.reset && { reset: (conn: Conn, signal: AbortSignal) => this.#reset(conn, signal) }),
      ...(can.transactions && { transactions: this.#transactions() }),
      ...(can.onDeath && {
        onDeath: (conn: Conn, listener: (error?: Error) => void) => { this.#onDeath(conn, listener) },
      }),
      onDriverEvent: (listener) => { this.#driver = listener },
      ...(can.close !== undefined && { close: () => this.#closeConnector(can.close!) }),
    }
  }

  #create (signal: AbortSignal): Promise<Conn> {
    this.#foreign('create')
    const now = this.#clock.now()
    this.#creates++
    this.#lastTrouble = now
    if (++this.#createsInBatch > 100) {
      this.#violate('creates run hot')
      // Never answered: else the loop would not end, and nobody be told.
      return new Promise(() => {})
    }
    this.#checkCreate(now)
    const outcome = this.#draw('create')
    const round = this.#round
    if (this.#failures > 0) this.#lastFailure = now
    if (outcome === 'throw') {
      this.#createFailed(round, now, 'refusal')
      throw this.#failure('create')
    }
    let call!: Call
    const promise = this.#call<Conn | undefined>('create', outcome, { signal, deadline: now + this.#options.connectTimeout }, (how, self) => {
      call = self
      return how === 'ok' ? this.#deliver(self, outcome === 'no') : undefined
    })
    // Before the pool's own: its books and these change one right after the other.
    promise.catch(() => {
      const at = this.#clock.now()
      if (!call.unwanted && !call.failed) this.#createFailed(round, at, at < call.deadline ? 'refusal' : undefined)
    })
    return promise as Promise<Conn>
  }

  #deliver (call: Call, broken: boolean): Conn {
    const conn = new Conn(++this.#delivered, call)
    conn.madeAt = conn.aliveAt = this.#clock.now()
    conn.cameIn = this.#batch
    // Right behind a stall, a deadline that passed in it has not been judged yet.
    const isOverdue = conn.madeAt >= call.deadline && (call.failed || conn.madeAt >= this.#judgedAt)
    conn.late = this.#close?.resolved === true || isOverdue
    conn.dead = broken && this.#plan.can.onDeath
    conn.broken = broken && (this.#plan.can.isBroken || this.#plan.can.onDeath)
    if (conn.broken) conn.brokenIn = this.#batch - 1
    this.#conns.add(conn)
    if (call.unwanted || !this.#plan.hooks.includes('onConnect')) this.#make(conn, 2)
    return conn
  }

  /** `onConnect` has run, or there is none. */
  #make (conn: Conn, hops: number): void {
    if (conn.late || conn.destroyedFor !== undefined) return
    if (conn.broken || conn.isBrokenThrows) {
      this.#createWillFail(conn, hops, 'death')
      return
    }
    conn.made = true
    conn.madeAt = conn.aliveAt = this.#clock.now()
  }

  /** Those that were under way together fail together: that is one failure. */
  #createFailed (round: number, at = this.#clock.now(), answer: 'refusal' | 'death' | undefined = undefined): void {
    this.#answer = answer
    this.#createErrors++
    this.#failedAt = at
    this.#failingSince = Math.min(this.#failingSince, at)
    if (round < this.#round) return
    this.#round++
    this.#failures++
    this.#lastFailure = at
  }

  /** @param hops how many microtasks from now the pool learns of it */
  async #createWillFail (conn: Conn, hops: number, answer?: 'death'): Promise<void> {
    for (let hop = 0; hop < hops; hop++) await undefined
    if (!conn.create.unwanted) this.#createFailed(conn.create.round, this.#clock.now(), answer)
  }

  #noteOverdue (until: number): void {
    for (const call of this.#calls) {
      if (call.method !== 'create' || call.deadline > until || call.failed || call.unwanted) continue
      this.#noteLate(call)
    }
  }

  #noteLate (call: Call): void {
    call.failed = true
    this.#createFailed(call.round, call.deadline)
  }

  /** How many connections count against `max`. */
  #counting (now: number): number {
    // Whoever was silent counts no more, also before the connector is told.
    return [...this.#conns].filter(({ late, destroying, unanswered }) => !late &&
      (destroying === undefined ? unanswered === undefined : destroying.deadline > now)).length
  }

  #works (conn: Conn): boolean {
    return conn.made && conn.destroyedFor === undefined && !conn.dead && !conn.broken && !conn.isBrokenThrows
  }

  #checkCreate (now: number): void {
    const stats = this.#pool.stats()
    const creating = this.#calls.filter(({ method, deadline }) => method === 'create' && deadline > now)
    // Of one that is not needed any more when it comes, `onConnect` does not run: it may be there already. Where that
    // failed, it goes.
    const making = [...this.#conns].filter((conn) =>
      !conn.late && !conn.made && conn.destroyedFor === undefined && conn.create.deadline > now &&
      !conn.wronged && (conn.busy !== undefined || !conn.create.unwanted))
    const live = creating.length + this.#counting(now)
    if (live >= this.#max) this.#violate(`a create, and there are ${live} of at most ${this.#max}`)
    const late = this.#calls.filter(({ method, deadline }) => method === 'create' && deadline < now).length +
      [...this.#conns].filter((conn) => !this.#isForgotten(conn, now) &&
        (conn.late || (conn.destroying !== undefined && conn.destroying.deadline < now))).length
    if (late >=
      this.#max) this.#violate(`a create, and there are ${late} late ones, and at most ${this.#max} connections`)
    const { maxConnecting = Infinity, backoff } = this.#options
    if (creating.length +
      making.length >= maxConnecting) this.#violate(`a create, and ${creating.length + making.length} are under way`)
    if (this.#suspendedIn !== undefined) this.#violate('a suspended pool creates')
    if (this.#close?.resolved === true) this.#violate('a closed pool creates')
    const wanted = [...creating, ...making.map(({ create }) => create)].filter(({ unwanted }) => !unwanted).length
    const probe = stats.circuit !== 'closed'
    // Another one would meet it, too.
    const pending = this.#met && stats.idle > 0 ? 0 : stats.pending
    const isNeeded = pending > wanted || stats.idle + stats.used + wanted < this.#target()
    // Somebody asks how the server is, and no connection can tell.
    // The pool may know of an end before the connector is told.
    const isNone = stats.idle + stats.used === 0 || ![...this.#conns].some((conn) => this.#works(conn))
    const learns = now - this.#askedAt < 60_000 && wanted === 0 && isNone
    if (!probe && !isNeeded && !learns) this.#violate('a create that nobody needs')
    this.#noteOverdue(now - 1)
    const { min = 50, max = 1000 } = backoff ?? {}
    const least = probe ? this.#openFor : Math.max(1, 0.5 * Math.min(max, min * 2 ** (this.#failures - 1)))
    // A probe that an `evict()` or a `resize()` ended was no failure.
    const last = probe ? this.#failedAt : this.#lastFailure
    if (this.#failures > 0 && stats.createErrors === this.#createErrors && now - last < least) {
      this.#violate(`a create ${now - last} ms behind failure ${this.#failures}: not before ${least} ms`)
    }
  }

  /** How long the circuit is open at least. */
  get #openFor (): number {
    const { circuit } = this.#options
    return circuit === undefined || circuit === false ? 0 : circuit.openFor ?? 500
  }

  /** How many connections there should be even when nobody waits, once the pool has started. */
  #target (): number {
    if (this.#draining) return 0
    return this.#openers.reduce((most, { target, settled }) => settled
      ? most
      : Math.max(most, Math.min(target, this.#max)), this.#min)
  }

  #destroy (conn: Conn, reason: DestroyReason, signal: AbortSignal): Promise<void> | void {
    this.#foreign('destroy')
    const now = this.#clock.now()
    const { busy } = conn
    if (conn.destroyedFor !== undefined) return this.#violate(`connection ${conn.id} was destroyed twice`)
    conn.destroyedFor = reason
    // Its `onConnect` took too long. (Where the caller's deadline is in the same millisecond, it was given up before.)
    if (!conn.made && !conn.late && !conn.create.unwanted && now >= conn.create.deadline &&
      reason !== 'released') this.#createFailed(conn.create.round)
    this.#destroyed[reason] = (this.#destroyed[reason] ?? 0) + 1
    if (conn.toldReason !== undefined && conn.toldReason !== reason) {
      this.#violate(`onDisconnect was told '${conn.toldReason}', the connector '${reason}'`)
    }
    if (conn.lease?.live === true &&
      !conn.lease.lease.ended) this.#violate(`connection ${conn.id} was destroyed while it was lent`)
    // A pool that closes waits for those that are used, but not for those that are made.
    const forced = this.#close !== undefined && (now >= this.#close.grace || !conn.made)
    if (busy !== undefined) {
      // Who ends a lease, or gives back what is broken, ends what its transaction did just then.
      const broken = conn.broken || conn.isBrokenThrows
      const ended = conn.interrupted || this.#isDoubted(busy) || (isPhase(busy.method) &&
        (conn.ending === 'release' && reason !== 'overdue'
          ? broken
          : conn.ending !== undefined || reason === 'overdue' ||
          conn.open.some((level) => this.#isOverdue(level))))
      if (now < busy.deadline && !forced &&
        !ended) this.#violate(`connection ${conn.id} was destroyed while its ${busy.method} was under way`)
      if (busy.signal?.aborted === false) {
        this.#violate(`connection ${conn.id} was destroyed while its ${busy.method} was under way, and the signal of that had not aborted`)
      }
    }
    const { idle, used, creating } = this.#pool.stats()
    // (What listeners do first may leave fewer.)
    if (reason === 'idle' && !conn.create.unwanted && this.#reactedIn !== this.#batch && idle + used + creating < this.#min) {
      this.#violate(`connection ${conn.id} was destroyed for the reason 'idle', and ${idle + used + creating} are left`)
    }
    if (conn.open.some((level) => this.#isOverdue(level))) conn.lost = true
    if (!this.#maySay(reason, conn,
      now)) this.#violate(`connection ${conn.id} was destroyed for the reason '${reason}'`)
    if (busy !== undefined && isPhase(busy.method) && now >= busy.deadline) conn.lost = true
    for (const [depth, level] of conn.open.entries()) {
      if (this.#isOverdue(level)) conn.lost = true
      level.inDoubtAtEnd = depth === 0 && (this.#plan.can.inDoubt ? this.#isInDoubt(level) : level.committing)
    }
    conn.open = []
    const outcome = this.#draw('destroy')
    const gone = () => {
      conn.gone = true
      this.#conns.delete(conn)
    }
    if (outcome === 'sync' || outcome === 'throw') {
      gone()
      if (outcome === 'throw') throw this.#failure('destroy')
      return
    }
    // Whoever was silent is not waited for.
    const silent = reason === 'invalid' && conn.unanswered !== undefined
    const isOverdue = silent && now >= conn.unanswered!.deadline && !conn.unanswered!.stalled
    if (isOverdue && !conn.broken && !conn.isBrokenThrows) {
      this.#silentSince = Math.max(this.#silentSince, conn.unanswered!.since)
    }
    if (signal.aborted !== silent && !conn.late) this.#violate(`a destroy whose signal has ${silent ? 'not ' : ''}aborted`)
    const deadline = silent ? now : now + this.#options.destroyTimeout
    return this.#call('destroy', outcome, { conn, signal, deadline }, gone)
  }

  /** Callers do not rely on a validation any more. */
  #isDoubted ({ method, since, doubted }: Call): boolean {
    return method === 'validate' && (doubted || this.#clock.now() - since >= 100)
  }

  /** A destroy that takes so long does not count as late any more. */
  #isForgotten ({ destroying }: Conn, now: number): boolean {
    return destroying !== undefined && now >= destroying.deadline + 60_000
  }

  #maySay (reason: DestroyReason, conn: Conn, now: number): boolean {
    const { idleTimeout = 60_000, maxLifetime = 1_800_000, maxUses = 0 } = this.#options
    const overdue = conn.busy !== undefined && now >= conn.busy.deadline
    switch (reason) {
      case 'idle': return idleTimeout > 0 || this.#resized
      case 'lifetime': return maxLifetime > 0 && now - conn.madeAt >= 0.9 * maxLifetime - 1
      case 'uses': return maxUses > 0 && conn.loans >= maxUses
      case 'invalid':
        return conn.invalid || conn.unanswered !== undefined || (conn.busy?.method === 'validate' && (overdue || this.#isDoubted(conn.busy)))
      case 'stale': return conn.create.generation < this.#generation || this.#evictedIn === this.#batch
      case 'error': return conn.wronged || conn.lost || conn.broken || conn.isBrokenThrows || overdue ||
        now >= conn.preparedUntil
      case 'aborted': return conn.ending === 'abandon'
      case 'leaked': return false
      case 'overdue': {
        const { lease } = conn
        return lease !== undefined && lease.holdTimeout > 0 && this.#heldFor(lease) >= lease.holdTimeout
      }
      case 'closed': return this.#draining
      // Given up, and made all the same: nobody waits for it any more.
      case 'released': return conn.late || conn.ending === 'destroy' || conn.create.unwanted ||
        (!conn.made && now === conn.create.deadline)
    }
  }

  #validate (conn: Conn, signal: AbortSignal): Promise<boolean> {
    this.#foreign('validate')
    this.#mustBeFree(conn, 'validated')
    conn.cleaning = undefined
    const outcome = this.#draw('validate')
    if (outcome === 'throw') {
      conn.invalid = true
      throw this.#failure('validate')
    }
    return this.#call('validate', outcome, { conn, signal, deadline: this.#clock.now() + this.#options.validateTimeout }, (how) => {
      const valid = how === 'ok' && outcome !== 'no'
      if (valid) conn.aliveAt = this.#clock.now()
      if (valid) conn.suspectIn = Infinity
      if (valid) conn.validated = true
      // The server has answered: that is good news, as a create's is. Which of the two the pool hears last, where both
      // come in one turn, is not known here.
      if (valid) this.#errorsAtConnect = this.#pool.stats().createErrors
      if (valid) this.#answeredIn = this.#batch
      else conn.invalid = true
      return valid
    })
  }

  // Sees its caller's async context, and may: a predicate that must not wait can't carry it anywhere.
  #isBroken (conn: Conn): boolean {
    // At the end of a lease, also while its transaction begins or ends; and where a commit rejects that does not tell
    // whether it is in doubt.
    const refused = !this.#plan.can.inDoubt && conn.refusedIn === this.#batch
    // A validation past its deadline is only silence where the driver does not know of the connection's end.
    const silent = conn.busy?.method === 'validate' && this.#clock.now() >= conn.busy.deadline
    if (!refused && !silent && (conn.busy === undefined || !isPhase(conn.busy.method))) {
      this.#mustBeFree(conn,
        'asked whether it is broken')
    }
    if (conn.isBrokenThrows) throw this.#failure('isBroken')
    return conn.broken
  }

  // As `isBroken`, it may see its caller's async context.
  #obstacle (conn: Conn): string | undefined {
    const { busy } = conn
    const now = this.#clock.now()
    // Who began a transaction is told why it did not.
    if ((busy?.method !== 'begin' && busy?.method !== 'savepoint') || now < busy.deadline) {
      this.#mustBeFree(conn, 'asked what is in its way')
      const isForNobody = this.#mayBeFast === undefined && this.#pool.stats().pending === 0
      if (isForNobody) this.#violate('what is in the way is asked for nobody')
    }
    conn.clearIn = this.#batch
    // Beyond that nothing is in the way any more: else the loop would not end, and nobody be told.
    if (++this.#asked - this.#askedBefore > 1000) this.#violate('what is in the way is asked without end')
    else if (this.#isObstructed) {
      conn.clearIn = -1
      this.#met = true
      this.#metAt = now
      return `the gate of fake://user:${secrets.url}@host/`
    }
    this.#met = false
    if (this.#way.throws && now < this.#way.until) throw this.#failure('obstacle')
    return undefined
  }

  get #isObstructed (): boolean {
    return this.#plan.can.obstacle && !this.#way.throws && this.#clock.now() < this.#way.until
  }

  #reset (conn: Conn, signal: AbortSignal): Promise<void> | undefined {
    this.#foreign('reset')
    this.#mustBeFree(conn, 'reset')
    if (conn.open.length > 0) this.#violate(`connection ${conn.id} was reset with an open transaction`)
    if (this.#options.reset === 'none') this.#violate('a reset in reset mode none')
    conn.cleaning ??= this.#clock.now()
    const outcome = this.#draw('reset')
    const clean = (how: 'ok' | 'error') => {
      if (how === 'ok') conn.dirty = undefined
      else conn.wronged = true
    }
    if (outcome === 'sync') {
      clean('ok')
      return undefined
    }
    if (outcome === 'throw') {
      clean('error')
      throw this.#failure('reset')
    }
    return this.#call('reset', outcome, { conn, signal, deadline: conn.cleaning + this.#options.resetTimeout }, (how) => {
      clean(how)
      if (how === 'ok') {
        conn.aliveAt = this.#clock.now()
        conn.suspectIn = Infinity
      }
      conn.bare = true
    })
  }

  #onDeath (conn: Conn, listener: (error?: Error) => void): void {
    this.#foreign('listening to deaths')
    this.#mustBeFree(conn, 'listened to')
    if (conn.die !== undefined) this.#violate('onDeath was called twice')
    conn.die = listener
    if (conn.dead) listener()
  }

  #closeConnector (outcome: Outcome): Promise<void> | void {
    this.#foreign('close')
    this.#closes++
    const { at, timeout } = this.#close!
    if (this.#clock.now() < at + timeout && this.#counting(this.#clock.now()) > 0) {
      this.#violate('the connector was closed before its connections')
    }
    if (outcome === 'throw') throw this.#failure('close')
    if (outcome === 'error') return Promise.reject(this.#failure('close'))
    if (outcome === 'deaf') return new Promise(() => {})
    if (outcome === 'ok') return Promise.resolve()
  }

  #hook (name: HookName, conn: Conn, info: HookInfo): unknown {
    this.#foreign(name)
    const now = this.#clock.now()
    if (conn.destroyedFor !== undefined) this.#violate(`${name} got connection ${conn.id}, which was destroyed`)
    if (conn.lease?.live === true &&
      !conn.lease.lease.ended) this.#violate(`${name} got connection ${conn.id} while it was lent`)
    if (info.pool !== 'sim' ||
      info.id !== (conn.poolId ??= info.id)) this.#violate(`${name} was told ${inspect(info)} of connection ${conn.id}`)
    if (name === 'onDisconnect') conn.toldReason = info.reason
    else this.#mustBeFree(conn, `given to ${name}`)
    if (name !== 'onDisconnect' &&
      conn.open.length > 0) this.#violate(`${name} got connection ${conn.id} with an open transaction`)
    const outcome = this.#draw(name)
    const { resetTimeout } = this.#options
    let deadline = now + resetTimeout
    if (name === 'onConnect') deadline = conn.made ? (conn.cleaning ?? now) + resetTimeout : conn.create.deadline
    if (name === 'onRelease') {
      conn.cleaning ??= now
      deadline = conn.cleaning + resetTimeout
    }
    if (name === 'onAcquire') {
      const holder = typeof info.holder === 'object' ? info.holder.id : info.holder
      if (info.uses !== conn.loans +
        1) this.#violate(`onAcquire was told of loan ${info.uses}, it is the one behind ${conn.loans}`)
      // The first time ever that it returns a promise, the pool had hoped to lend at once: it cleans that connection,
      // and its caller waits.
      // One for whom a lease was recalled, or who found others in line, stood in line.
      const fast = holder === this.#mayBeFast && !this.#hookWaits && this.#recalls === this.#recallsBefore &&
        this.#pendingBefore === 0
      const waits = outcome !== 'sync' && outcome !== 'throw' && outcome !== 'refuse'
      this.#hookWaits ||= waits
      const ask = [...this.#asks].find((one) => one.holder === holder)
      if (!fast && ask === undefined) this.#violate(`onAcquire was told of ${String(holder)}, who does not wait`)
      if (!fast && ask !== undefined) {
        deadline = ask.deadline
        ask.prepared ||= waits
        ask.awayIn = this.#batch
      }
      this.#leaveIdle(conn)
      conn.cleaning = fast ? now : undefined
      conn.preparedUntil = fast ? Infinity : deadline
      conn.dirty = holder
    }
    const done = (how: 'ok' | 'error'): unknown => {
      if (outcome === 'no' || outcome === 'refuse') {
        conn.invalid = true
        // Where it is new, the next create waits, as behind a failure.
        if (conn.loans === 0) this.#refusedAt = now
        return false
      }
      if (how === 'error' && name !== 'onDisconnect') conn.wronged = true
      if (name !== 'onConnect') return
      conn.cameIn = this.#batch
      if (how === 'error') {
        if (!conn.made && !conn.late && conn.destroyedFor === undefined) this.#createWillFail(conn, 2)
        return
      }
      if (!conn.made) this.#make(conn, outcome === 'sync' ? 1 : 2)
      conn.bare = false
    }
    if (outcome === 'sync' || outcome === 'refuse') return done('ok')
    if (outcome === 'throw') {
      done('error')
      throw this.#failure(name)
    }
    return this.#call(name, outcome,
      { conn, deadline, holder: typeof info.holder === 'object' ? info.holder.id : info.holder }, done)
  }

  /** Whatever the pool calls runs in the pool's own async context. */
  #foreign (what: string): void {
    const seen = store.getStore()
    if (seen !== undefined) this.#violate(`${what} sees the async context of ${seen}`)
    // An app's code may leave its own behind.
    if (what.startsWith('on') || what.startsWith('a listener')) store.enterWith(what)
  }

  #mustBeFree (conn: Conn, what: string): void {
    if (conn.destroyedFor !== undefined) this.#violate(`connection ${conn.id} was ${what} behind its end`)
    if (conn.busy !== undefined) this.#violate(`connection ${conn.id} was ${what} while its ${conn.busy.method} was under way`)
    if (conn.lease?.live === true &&
      !conn.lease.lease.ended) this.#violate(`connection ${conn.id} was ${what} while it was lent`)
  }

  #draw (method: Method): Outcome {
    if (this.#calm) return 'ok'
    const list = this.#plan.outcomes[method]
    const at = this.#drawn[method] ?? 0
    this.#drawn[method] = at + 1
    return list[at] ?? (this.#plan.repeats ? list.at(-1) : undefined) ?? 'ok'
  }

  #call<T> (
    method: Method, outcome: Outcome,
    { conn, signal, deadline, holder }: { conn?: Conn, signal?: AbortSignal, deadline: number, holder?: unknown },
    settled: (how: 'ok' | 'error', call: Call) => T
  ): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      const call: Call = {
        method,
        conn,
        signal,
        since: this.#clock.now(),
        deadline,
        stalled: false,
        doubted: false,
        outcome,
        holder,
        generation: this.#generation,
        round: this.#round,
        failed: false,
        unwanted: false,
        answered: false,
        answer: (how) => {
          if (call.answered) return
          call.answered = true
          this.#calls.splice(this.#calls.indexOf(call), 1)
          if (conn?.busy === call) conn.busy = undefined
          const result = settled(how, call)
          if (how === 'ok') return resolve(result)
          if (method === 'create') this.#failing.push(call)
          const error = this.#failure(method)
          // Whatever it is taken for, what may be stored is not run again.
          if (method === 'commit') this.#transient.add(error)
          reject(error)
        },
      }
      this.#calls.push(call)
      if (method === 'destroy') conn!.destroying = call
      else if (conn !== undefined && method !== 'onDisconnect') conn.busy = call
      signal?.addEventListener('abort', () => {
        // At its deadline, or behind it where a stall hides that from the pool, it may be given up for another reason.
        call.unwanted ||= this.#clock.now() < call.deadline || !String(signal.reason).includes('(connectTimeout)')
        // The pool counts it now, and may begin another one before this one rejects.
        if (method === 'create' && !call.unwanted && !call.failed && !call.answered) this.#noteLate(call)
        if (method === 'validate') conn!.unanswered = call
        if (outcome === 'slow' || outcome === 'hang') call.answer('error')
      })
      if (outcome === 'ok' || outcome === 'no') call.answer('ok')
      else if (outcome === 'error') call.answer('error')
    })
  }

  /** As a driver's: with the secrets everywhere. */
  #failure (what: string): Error {
    const error = Object.assign(new Error(`${what} failed: login with ${secrets.password} at fake://user:${secrets.url}@host/`, {
      cause: new Error(`password ${secrets.password}`),
    }), { args: [secrets.password] })
    this.#own.add(error)
    return error
  }

  // --- Listeners -----------------------------------------------------------------------------------------------------

  #listen (event: PoolEventName, behaviour: typeof behaviours[number]): void {
    const counted = { event, count: 0 }
    if (behaviour === 'count') this.#counted.push(counted)
    const undo = this.#pool.on(event, (payload) => {
      this.#foreign(`a listener of ${event}`)
      if (tells(payload)) this.#violate(`the event ${event} tells a secret: ${inspect(payload)}`)
      if (payload.pool !== 'sim' ||
        !Object.isFrozen(payload)) this.#violate(`the event ${event} is ${inspect(payload)}`)
      counted.count++
      if (behaviour === 'throw') throw this.#failure(`a listener of ${event}`)
      if (behaviour === 'reject') return Promise.reject(this.#failure(`a listener of ${event}`))
      if (behaviour === 'undo') undo()
      const reaction = this.#reaction(behaviour)
      // Each call may set off other events.
      if (reaction === undefined || this.#budget-- <= 0) return
      this.#reactedIn = this.#batch
      this.#rested = false
      this.#note(reaction, ` (a listener of ${event})`)
      const outer = this.#mayBeFast
      this.#mayBeFast = undefined
      store.run(`a listener of ${event}`, () => { this.#act(reaction) })
      this.#mayBeFast = outer
    })
  }

  #reaction (behaviour: typeof behaviours[number]): Action | undefined {
    switch (behaviour) {
      case 'acquire': return { do: 'acquire', signal: 'none', timeout: undefined, holdTimeout: undefined }
      case 'tryAcquire': return { do: 'tryAcquire' }
      case 'release': return { do: 'release', which: 0 }
      case 'destroy': return { do: 'destroy', which: 0 }
      case 'evict': return { do: 'evict', idle: false, used: false }
      case 'resize': return { do: 'resize', min: undefined, max: 1 + this.#budget % 4 }
      case 'stats': return { do: 'health' }
      case 'abort': return { do: 'abort', which: this.#budget }
      case 'suspend': return { do: this.#budget % 2 === 0 ? 'suspend' : 'resume' }
      case 'close': return { do: 'close', timeout: 500 }
      case 'obstruct': return { do: 'obstruct', ms: this.#budget % 2 === 0 ? 60 : 0, throws: this.#budget % 3 === 0 }
    }
    return undefined
  }

  // --- The promises --------------------------------------------------------------------------------------------------

  #violate (what: string): void {
    this.#violations.push(what)
  }

  /** With nothing under way but what waits for somebody: every promise of the engine holds, as seen from outside. */
  #rest (): void {
    // The pool waits for the next turn, in which the sockets have been read.
    if (this.#clock.now() < this.#judgedAt) return
    this.#stood = false
    this.#batch++
    this.#createsInBatch = 0
    this.#askedBefore = this.#asked
    this.#failing = []
    const stats = this.#pool.stats()
    this.#noteOverdue(this.#clock.now())
    this.#checkOpening()
    this.#checkCreateErrors(stats)
    this.#checkHeld(stats)
    this.#checkAsks(stats)
    this.#checkBooks(stats)
    this.#checkTruth(stats)
    if (stats.created > this.#createdAtRest) this.#errorsAtConnect = stats.createErrors
    this.#createdAtRest = stats.created
    this.#checkSuspects()
    this.#checkDeadlines()
    this.#checkOpeners(stats)
    this.#checkTimers()
    this.#generationBefore = this.#generation
    if (strays.length > 0) this.#violate(`the process noticed ${inspect(strays.splice(0))}`)
    if (this.#violations.length > 0) throw new Error(`at ${this.#clock.now()} ms: ${this.#violations.join('; ')}`)
  }

  /** Creates have failed for so long as the circuit's `after` says, before it opens. */
  #checkOpening (): void {
    const { circuit } = this.#options
    const failing = this.#openedAt - this.#failingSince
    this.#openedAt = Infinity
    // Infinity: a create has worked since.
    if (circuit === undefined || circuit === false || !(failing >= 0 && failing < circuit.after!)) return
    this.#violate(`the circuit opened when creates had failed for ${failing} ms`)
  }

  #checkCreateErrors ({ createErrors }: PoolStats): void {
    if (createErrors > this.#createErrorsBefore) this.#lastTrouble = this.#clock.now()
    this.#createErrorsBefore = createErrors
    if (createErrors === this.#createErrors) return
    // What an `evict()`, or a listener, made needless this moment fails without being counted: nobody can say which
    // came first. Nor where those who waited left the line in the same millisecond, by their deadlines or since the
    // circuit opened at the first failure: with them go the creates that were only for them.
    const spared = this.#expiredAt === this.#clock.now() && createErrors < this.#createErrors
    if (this.#evictedIn !== this.#batch - 1 && this.#reactedIn !== this.#batch - 1 && !spared) {
      this.#violate(`${this.#createErrors} creates failed, stats() has ${createErrors}`)
    }
    this.#createErrors = createErrors
    this.#failures = 0
  }

  #checkHeld (stats: PoolStats): void {
    const now = this.#clock.now()
    const { leakAfter = 0 } = this.#options
    for (const held of this.#held.slice()) {
      const { lease, conn } = held
      if (!lease.ended) {
        if (lease.connection !== conn) this.#violate('a lease has changed its connection')
        if (Math.abs(lease.heldFor - (now - held.since)) > 100) this.#violate(`a lease held for ${now - held.since} ms says ${lease.heldFor}`)
        if (leakAfter > 0 && now - held.since > leakAfter + 101) held.leaked = true
        if (now > held.endsBy + this.#stalls) this.#violate(`a lease with a holdTimeout of ${held.holdTimeout} is out for ${now - held.since} ms`)
        continue
      }
      const isOverdue = held.holdTimeout > 0 && this.#heldFor(held) >= held.holdTimeout
      if (this.#close === undefined && !conn.lost && !isOverdue) this.#violate('a lease ended by itself')
      if (conn.destroyedFor === undefined) this.#violate(`connection ${conn.id} lost its lease, and was not destroyed`)
      held.live = false
      this.#held.splice(this.#held.indexOf(held), 1)
      this.#end(held)
      held.finish?.()
    }
    const leaked = this.#leaked + this.#held.filter((held) => held.leaked).length
    const mayHaveLeaked = this.#mayHaveLeaked + this.#held.filter(({ since }) => now - since >= leakAfter - 100).length
    if (leakAfter > 0 && (stats.leaked < leaked || stats.leaked > mayHaveLeaked)) {
      this.#violate(`stats() has ${stats.leaked} leaked, and ${leaked} to ${mayHaveLeaked} have`)
    }
    const holders = this.#pool.holders()
    const told = holders.map(({ holder }) => (typeof holder === 'object' ? holder.id : holder) ?? '').sort().join()
    const known = this.#held.map(({ n, holder }) => this.#label(n, holder) === undefined ? '' : holder).sort().join()
    if (told !== known) this.#violate(`holders() tells '${told}', and there are '${known}'`)
    if (holders.some(({ heldFor }, i) => i > 0 &&
      heldFor > holders[i - 1]!.heldFor)) this.#violate('holders() are out of order')
  }

  /** @param held its lease has ended */
  #end (held: Held): void {
    const { leakAfter = 0 } = this.#options
    if (held.leaked) this.#leaked++
    if (this.#clock.now() - held.since >= leakAfter - 100) this.#mayHaveLeaked++
    this.#ended.push(held)
    if (this.#ended.length > 8) this.#ended.shift()
  }

  /** For how long, in ms, without what the pool knows that the event loop stood still: not in a hold's first tick. */
  #heldFor ({ since, stood }: Held): number {
    const heldFor = this.#clock.now() - since
    return Math.min(heldFor, heldFor - stood + 100)
  }

  #checkAsks (stats: PoolStats): void {
    const now = this.#clock.now()
    let inLine = 0
    for (const ask of this.#asks) {
      if (now > Math.max(ask.deadline, this.#judgedAt) + 1) this.#violate(`${ask.holder} waits ${now - ask.deadline} ms behind its deadline`)
      if (ask.controller?.signal.aborted === true) this.#violate(`${ask.holder} was aborted, and waits`)
      if (this.#close?.resolved === true) this.#violate(`${ask.holder} waits at a closed pool`)
      if (ask.mustBeRefused && !ask.interrupted) this.#violate(`${ask.holder} waits, and maxPending did so before`)
      // The first promise that `onAcquire` ever returned prepared a connection for nobody.
      const isFor = ({ method, holder, conn }: Call) => method === 'onAcquire' && holder === ask.holder &&
        conn!.destroyedFor === undefined && conn!.cleaning === undefined
      if (ask.prepared && this.#calls.some(isFor)) {
        ask.awayIn = this.#batch
        ask.awayAtRest = true
        continue
      }
      ask.awayAtRest = false
      inLine++
      // Who has gone back to the line, since the connection prepared for it died, was overtaken before.
      if (ask.n < this.#latestServed && ask.awayIn < this.#batch - 1 && !ask.interrupted) {
        this.#violate(`${ask.holder} waits, and caller ${this.#latestServed} was served`)
      }
    }
    this.#latestServed = 0
    if (stats.pending !== inLine) this.#violate(`${inLine} wait, stats() has ${stats.pending}`)
    if (inLine > 0 && stats.circuit !== 'closed' && stats.idle + stats.used === 0 && this.#suspendedIn === undefined && !this.#draining) {
      this.#violate(`${inLine} wait, there is no connection, and the circuit is ${stats.circuit}`)
    }
    const refusals = this.#refusals
    const timeouts = refusals.FST_POOL_ACQUIRE_TIMEOUT + refusals.FST_POOL_CONNECT_FAILED
    const refused = refusals.FST_POOL_QUEUE_FULL + refusals.FST_POOL_OVERLOADED + refusals.FST_POOL_CIRCUIT_OPEN +
      refusals.FST_POOL_CLOSED
    if (!this.#plan.can.permanent) this.#compare(stats, { timeouts, refused })
    // Of those who can't connect, some came to their deadline and some were refused at once.
    else if (stats.timeouts + stats.refused !== timeouts + refused) {
      this.#violate(`${timeouts + refused} were not served in time, or refused: stats() has ${stats.timeouts} and ${stats.refused}`)
    }
    this.#compare(stats, {
      aborted: refusals.FST_POOL_ABORTED,
      acquired: this.#leases,
      released: this.#leases - this.#held.length,
    })
    if (this.#close?.resolved === true) return
    for (const { event, count } of this.#counted) {
      const { acquired: acquire, released: release, timeouts: timeout, refused: refuse, leaked: leak } = stats
      const expected = { acquire, release, timeout, refuse, leak }[event as string]
      if (expected !== undefined &&
        expected !== count) this.#violate(`${count} events ${event}, stats() has ${expected}`)
    }
  }

  /** No number leaves out those who failed, still wait, or still hold. */
  #checkTruth (stats: PoolStats): void {
    const now = this.#clock.now()
    const { acquired, wait, held, create, busy, saturated, refused, refusals, routes, lastMinute, resetting } = stats
    for (const { since } of this.#asks) this.#longestWait = Math.max(this.#longestWait, now - since)
    for (const { since, lease } of this.#held) {
      if (!lease.ended) this.#longestHold = Math.max(this.#longestHold, now - since)
    }
    if (wait.max !== this.#longestWait) this.#violate(`somebody has waited ${this.#longestWait} ms, stats() has ${wait.max}`)
    const least = acquired + this.#asks.size + this.#inVain
    if (wait.count < least || wait.count > least + this.#failed - this.#inVain) {
      this.#violate(`${acquired} were served, ${this.#inVain} in vain, ${this.#asks.size} wait: stats() has ${wait.count}`)
    }
    if (held.count !== acquired || create.count !== stats.created) {
      this.#violate(`${held.count} leases, ${create.count} creates were timed`)
    }
    if (held.max < this.#longestHold) this.#violate(`a lease is out for ${this.#longestHold} ms, stats() has ${held.max}`)
    const known = Object.values(routes).reduce((sum, ms) => sum + ms, 0)
    const near = (one: number, other: number) => Math.abs(one - other) < 0.001
    if (!near(busy, held.sum) || known > busy + 0.001) this.#violate(`busy is ${busy}, held ${held.sum}, routes ${known}`)
    if (saturated > now || saturated < 0) this.#violate(`saturated for ${saturated} ms after ${now}`)
    const reasons = Object.values(refusals).reduce((sum, count) => sum + count, 0)
    if (reasons !== refused) this.#violate(`${refused} were refused, for reasons ${inspect(refusals)}`)
    for (const { buckets, count } of [wait, held, create]) {
      const counts = [0, ...buckets.map((bucket) => bucket.count), count]
      if (counts.some((one, at) => one < counts[at - 1]!)) this.#violate(`buckets fall: ${inspect(counts)}`)
    }
    if (resetting > stats.used) this.#violate(`${resetting} are reset, and ${stats.used} used`)
    const { span } = lastMinute
    if (span > Math.min(now, 65_000)) this.#violate(`the last minute is ${span} ms long, after ${now}`)
    for (const key of ['acquired', 'released', 'timeouts', 'refused', 'busy', 'saturated'] as const) {
      if (now <= 60_000 ? !near(lastMinute[key], stats[key]) : lastMinute[key] > stats[key] + 0.001) {
        this.#violate(`${key} is ${stats[key]} by now, and within the last minute ${lastMinute[key]}`)
      }
    }
    if (lastMinute.busy > 4 * span + 1) this.#violate(`busy for ${lastMinute.busy} ms of ${span}`)
  }

  #compare (stats: PoolStats, books: Partial<PoolStats>): void {
    for (const [key, expected] of Object.entries(books)) {
      const given = stats[key as keyof PoolStats]
      if (given !== expected) this.#violate(`${key} is ${expected}, stats() has ${inspect(given)}`)
    }
  }

  #checkBooks (stats: PoolStats): void {
    const now = this.#clock.now()
    const closed = this.#close?.resolved === true
    const idle: Conn[] = []
    let creating = 0
    let wanted = 0
    let used = 0
    let closing = 0
    let late = 0
    let validating = 0
    let doubted = 0
    for (const call of this.#calls) {
      const { method, conn, deadline, unwanted } = call
      if (method === 'validate' && conn!.destroyedFor === undefined) validating++
      // A tick later at the latest.
      if (method === 'validate' && conn!.destroyedFor === undefined && (call.doubted || now - call.since > 101)) doubted++
      if (method !== 'create') continue
      if (closed || deadline <= now) late++
      else creating++
      if (deadline > now && !unwanted) wanted++
    }
    const ids = new Set<number>()
    for (const conn of this.#conns) {
      if (conn.destroyedFor !== undefined) {
        if (this.#isForgotten(conn, now) && !closed) continue
        if (conn.late || closed || conn.destroying!.deadline <= now) late++
        else closing++
        continue
      }
      if (conn.late) this.#violate(`connection ${conn.id} came late, and was kept`)
      if (closed) this.#violate(`connection ${conn.id} outlived its pool`)
      if (!conn.made) {
        if (conn.busy === undefined) this.#violate(`connection ${conn.id} was not made, and was not destroyed`)
        creating++
        if (!conn.create.unwanted) wanted++
        continue
      }
      if (conn.poolId !== undefined) ids.add(conn.poolId)
      if (conn.lease?.live === true || conn.busy !== undefined) used++
      else idle.push(conn)
    }
    this.#compare(stats,
      { creating, idle: idle.length, used, closing, late, created: this.#connects, min: this.#min, max: this.#max })
    for (const [reason, count] of Object.entries(stats.destroyed)) {
      const expected = this.#destroyed[reason as DestroyReason] ?? 0
      if (count !== expected) this.#violate(`${expected} were destroyed for the reason ${reason}, stats() has ${count}`)
    }
    if (late > 12) this.#violate(`${late} are late`)
    for (const id of ids) {
      if (!closed &&
      !this.#connected.has(id)) this.#violate(`connection ${id} is there without an event connect`)
    }
    if (!closed && this.#connected.size !== idle.length + used) {
      this.#violate(`${this.#connected.size} connections by the events, and ${idle.length + used} are there`)
    }
    const there = idle.length + used + wanted
    this.#checkIdle(idle, there)
    this.#checkSupply(stats,
      {
        idle: idle.length,
        there,
        total: creating + idle.length + used + closing,
        creating,
        wanted,
        late,
        validating,
        doubted,
      })
  }

  /** After a silence, whoever was not seen alive since is suspect. */
  #checkSuspects (): void {
    for (const conn of this.#conns) {
      if (!conn.made || conn.destroyedFor !== undefined || conn.aliveAt >= this.#silentSince) continue
      // A reset that waits for the server is an answer, too.
      if (conn.busy === undefined || conn.busy.method === 'onAcquire') conn.suspectIn = Math.min(conn.suspectIn, this.#batch)
      if (conn.busy === undefined && conn.lease?.live !== true) this.#violate(`connection ${conn.id} is suspect, and idle`)
    }
  }

  #checkIdle (idle: readonly Conn[], there: number): void {
    const now = this.#clock.now()
    const { idleTimeout = 60_000, maxLifetime = 1_800_000 } = this.#options
    // What something is in the way of is kept for those who wait.
    const kept = this.#plan.can.obstacle && this.#asks.size > 0
    if (this.#draining && idle.length > 0 && !kept) this.#violate(`${idle.length} are idle while the pool drains`)
    if (idle.length > 0 &&
      there > this.#max) this.#violate(`${idle.length} are idle, and there are ${there} of at most ${this.#max}`)
    for (const conn of idle) {
      if (conn.idleSince === undefined) {
        conn.idleSince = now
        conn.aliveAt = Math.max(conn.aliveAt, now)
      }
      if (conn.open.length > 0) this.#violate(`connection ${conn.id} is idle with an open transaction`)
      conn.cleaning = undefined
      conn.validated = false
      conn.surplusSince = there > this.#min ? conn.surplusSince ?? now : undefined
      if (conn.create.generation < this.#generation ||
        conn.evicted) this.#violate(`connection ${conn.id} is stale, and idle`)
      if (conn.dead) this.#violate(`connection ${conn.id} has died, and is idle`)
      if (maxLifetime > 0 &&
        now - conn.madeAt > maxLifetime + 101) this.#violate(`connection ${conn.id} is idle, ${now - conn.madeAt} ms old`)
      // A ping may hold up the check, until it is answered.
      const surplusFor = now - Math.max(conn.idleSince + idleTimeout, conn.surplusSince ?? Infinity, conn.aliveAt)
      if (idleTimeout > 0 && surplusFor > 201) {
        this.#violate(`connection ${conn.id} is idle since ${now - conn.idleSince} ms`)
      }
    }
  }

  /** Whoever waits is brought whatever there is, and what there may be, where it pays. */
  #checkSupply (
    { pending, createErrors, circuit }: PoolStats,
    { idle, there, total, creating, wanted, late, validating, doubted }: Readonly<Record<'idle' | 'there' | 'total' | 'creating' | 'wanted' | 'late' | 'validating' | 'doubted', number>>
  ): void {
    // While connections are idle, or asked whether they are alive, or the pool is suspended, no lease is recalled.
    const isServed = pending > 0 && pending <= validating
    if (idle > 0 || isServed || this.#suspendedIn !== undefined) this.#keptAt = this.#clock.now()
    if (this.#suspendedIn !== undefined || this.#close?.resolved === true) return
    const offered = [...this.#offered].filter(({ live, lease }) => live && !lease.ended)
    // Those that were offered while others were being recalled, or left alone, are looked at with the next tick.
    const isDue = ({ offeredAt }: Held) => Math.max(offeredAt, this.#keptAt) + 101 < this.#clock.now()
    if (pending > validating && idle === 0 && offered.some(isDue)) {
      this.#violate(`${pending} wait, and ${offered.length} would be given back for them`)
    }
    // By then the pool asks again.
    const hindered = this.#clock.now() <= this.#metAt + 25
    if (pending > validating && idle > 0) {
      if (!hindered) this.#violate(`${pending} wait, and ${idle} are idle`)
      if (this.#met) this.#hinderedIn = this.#batch
    }
    const { maxConnecting = Infinity, backoff, connectTimeout } = this.#options
    if (pending > 0) this.#started = true
    // Where nothing is known of connects, or no connection is here, each one who waits gets a create. Else it may not
    // pay; but whoever has waited longer than any connect took gets one. Time in which the event loop stood still does
    // not count.
    const overdue = [...this.#asks].filter(({ since, awayAtRest }) =>
      !awayAtRest && this.#clock.now() > Math.max(since, this.#stoodUntil) + this.#slowest + 2).length
    const claiming = there === wanted ? pending : overdue
    // Beside a validation that takes long a create begins, and at `max` the connection is given up for it.
    const given = idle === 0 ? doubted : 0
    const lacking = hindered ? 0 : claiming - (validating - given) - wanted
    // Somebody asks how the server is, and the last that was heard of it was a failed create.
    const learns = there === 0 && creating === 0 && createErrors > this.#errorsAtConnect && !this.#draining &&
      this.#clock.now() - this.#askedAt < 59_000
    const missing = Math.max(lacking, this.#started ? this.#target() - there : 0, learns ? 1 : 0)
    const room = this.#max - total + (lacking > 0 ? given : 0)
    const mayCreate = Math.min(missing, room, maxConnecting - creating)
    if (mayCreate <= 0 || late >= this.#max) return
    // A server that answers, and refuses us: for good, or beside connections that work, since it allows no more. Then
    // the pauses are longer, and beside such connections nothing is tried while nobody waits.
    const answer = this.#failures > 0 ? this.#answer : undefined
    const isRefused = answer === 'refusal' && this.#plan.can.permanent
    const isFull = answer !== undefined && !isRefused && there > wanted
    const isPatient = isFull || isRefused
    const longest = isPatient ? 30_000 : Math.max(backoff?.max ?? 1000, 1.1 * this.#openFor)
    const isOpening = this.#openers.some(({ settled }) => !settled)
    const lastTrouble = createErrors > 0 ? Math.max(this.#lastTrouble, this.#refusedAt) : this.#refusedAt
    const failing = this.#clock.now() <= lastTrouble + longest + 1 || (isFull && pending === 0 && !isOpening)
    const probing = circuit === 'half-open' && creating > 0
    // While the circuit is open there is one create at a time: also one that nobody needed any more is waited for.
    if (isRefused && there === 0 && pending > 0 && !probing) {
      this.#violate(`${pending} wait, and the server refuses us for good`)
    }
    if (!failing &&
      !probing) this.#violate(`${mayCreate} more creates may start, for ${pending} who wait (min ${this.#min}, connectTimeout ${connectTimeout})`)
  }

  #checkDeadlines (): void {
    const now = this.#clock.now()
    if (this.#close?.resolved === true) return
    for (const { method, conn, signal, deadline } of this.#calls) {
      if (now <= deadline + 1) continue
      if (signal?.aborted === false) this.#violate(`a ${method} is past its deadline, and its signal has not aborted`)
      if (conn?.destroyedFor === undefined && conn !== undefined && method !== 'onDisconnect') {
        this.#violate(`${method} of connection ${conn.id} is ${now - deadline} ms past its deadline, and nobody minds`)
      }
    }
    for (const { open } of this.#conns) {
      for (const { run, commitTimeout } of open) {
        if (commitTimeout > 0 && run !== undefined &&
          now > run.concludedAt + commitTimeout + this.#options.resetTimeout + 1) this.#violate('a transaction is past its commitTimeout')
      }
    }
    for (const { by, settled } of this.#healths) {
      if (!settled &&
      now > by + 1) this.#violate('health() is past its deadline')
    }
    this.#healths = this.#healths.filter(({ settled }) => !settled)
  }

  #checkOpeners (stats: PoolStats): void {
    const there = stats.idle + stats.used
    for (const { target, settled } of this.#openers) {
      if (settled || (!this.#draining && there < Math.min(target, this.#max))) continue
      this.#violate(`open() waits for ${target}, and there are ${there}${this.#draining ? ', and the pool drains' : ''}`)
    }
    for (const { settled, leases } of this.#drains) {
      if (!settled && stats.used === 0 && stats.pending === 0) this.#violate('drain() does not resolve')
      if (settled && leases.some(({ live }) => live)) this.#violate('drain() resolved while a connection was lent')
    }
    this.#drains = this.#drains.filter(({ settled }) => !settled)
  }

  /** The process lives as long as somebody waits, and no longer. */
  #checkTimers (): void {
    const now = this.#clock.now()
    const { set, ref } = this.#clock.timers
    if (set > 1) this.#violate(`${set} timers are set`)
    if (this.#close?.resolved === true && set > 0) this.#violate('a timer outlives its pool')
    // An `open()` of a suspended pool waits for nothing but its `resume()`.
    const opening = this.#suspendedIn === undefined && this.#openers.some(({ settled }) => !settled)
    // Those that wait for their turn, or to be run again.
    const transacting = this.#runs.size > 0
    const waiting = this.#asks.size > 0 || opening || this.#close?.resolved === false
    if (waiting && ref === 0) this.#violate('somebody waits, and nothing keeps the process alive')
    // Who came and was served within a step has waited, too.
    const served = this.#leases > this.#leasesBefore
    this.#leasesBefore = this.#leases
    this.#refSince = waiting || transacting || served || ref === 0 ||
      this.#openers.some(({ settled }) => !settled)
      ? undefined
      : this.#refSince ?? now
    if (this.#refSince !== undefined &&
      now - this.#refSince > 100) this.#violate('nobody waits, and the process is kept alive')
  }
}
