import { existsSync, realpathSync } from 'node:fs'
// Bundlers do things of their own with an imported `createRequire`.
import * as modules from 'node:module'
import { join } from 'node:path'
import { PoolError, badOption, secretsOf, show } from '../pool/errors.js'
import type { Address } from '../../types/options.js'

/** One of the drivers: how to get it, and how to know it. */
export interface DriverKind<T> {
  readonly backend: string
  /** Its package. */
  readonly name: string
  /** A package that has the driver as its own dependency: the driver is the copy that this package uses, so that there is one. */
  readonly via?: string
  /** What the option `driver` may be, as an error says it. */
  readonly expected: string
  /** The driver, where `module` is it. */
  read (module: Module): T | undefined
  /** Whether `module` belongs to the driver, and yet does not give it: then the driver is loaded by its name. */
  belongs? (module: Module): boolean
}

export type Module = Readonly<Record<string, unknown>>

/**
 * The driver that the app gave, or the one that is installed.
 *
 * @param given the option `driver`: the driver's module, as `import` or as `require` gives it
 * @throws `FST_POOL_BAD_OPTIONS`: something else was given; `FST_POOL_MISSING_DRIVER`: none is installed
 */
export function loadDriver<T> (kind: DriverKind<T>, given: unknown): T {
  const { name, via, backend, expected } = kind
  if (given !== undefined) {
    const driver = readModule(kind, given)
    if (driver !== undefined) return driver
    if (facesOf(given).some((face) => kind.belongs?.(face)) !== true) throw badDriver(given, expected)
  }
  const driver = readModule(kind, requirePackage(name, { via, backend }))
  if (driver !== undefined) return driver
  throw new PoolError('FST_POOL_MISSING_DRIVER', `backend '${backend}' needs ${expected}: the installed ${name} is something else`)
}

function readModule<T> (kind: DriverKind<T>, module: unknown): T | undefined {
  for (const face of facesOf(module)) {
    const driver = kind.read(face)
    if (driver !== undefined) return driver
  }
  return undefined
}

/** A module, and its default export: `import` and bundlers put what a CommonJS module exports there, at times within another. */
export function facesOf (module: unknown): Module[] {
  const faces: Module[] = []
  for (let face = module; isModule(face) && !faces.includes(face); face = face.default) faces.push(face)
  return faces
}

function isModule (value: unknown): value is Module {
  return typeof value === 'function' || (typeof value === 'object' && value !== null)
}

/** Names only: whatever a value is, it is not shown. */
export function badDriver (given: unknown, expected: string): PoolError {
  if (!isModule(given)) return badOption('driver', given, expected)
  const [what, keys] = typeof given === 'function' ? ['a function', [Reflect.get(given, 'name')]] : ['an object', Object.keys(given).slice(0, 5)]
  const names = keys.map((key) => show(String(key))).join(', ')
  return new PoolError('FST_POOL_BAD_OPTIONS', `option driver is ${what}${names === '' ? '' : ` (${names})`}: expected ${expected}`)
}

/**
 * An optional package, by its name, so that what instruments drivers hears of it.
 *
 * @throws `FST_POOL_MISSING_DRIVER`: it is not installed, or can't be loaded, as `cause` says
 */
export function requirePackage (name: string, { via, backend }: { via?: string | undefined, backend: string }): unknown {
  const wanted = via ?? name
  try {
    const { require, error } = findRequire(wanted)
    if (require === undefined) throw error
    return via === undefined ? require(name) : modules.createRequire(require.resolve(via))(name)
  } catch (error) {
    throw new PoolError('FST_POOL_MISSING_DRIVER', `backend '${backend}' needs the package ${wanted}: npm install ${wanted}`, { cause: error })
  }
}

/** Whether `requirePackage` finds it. */
export function isInstalled (name: string): boolean {
  return findRequire(name).require !== undefined
}

/**
 * The first `require` that finds the package: ours, or the app's. A bundle has our code in a file of the app, and its `import.meta.url` says little:
 * undefined, or where our file was when the bundle was made.
 */
function findRequire (name: string): { require?: NodeJS.Require, error?: unknown } {
  const errors: unknown[] = []
  for (const from of [import.meta.url, mainFile(), join(process.cwd(), 'index.js')]) {
    try {
      const require = modules.createRequire(from!)
      require.resolve(name)
      return { require }
    } catch (error) {
      errors.push(error)
    }
  }
  return { error: new AggregateError(errors, `${name} was not found`) }
}

/** Of the app. There is none in a REPL. */
function mainFile (): string | undefined {
  const [, script] = process.argv
  return script !== undefined && existsSync(script) ? realpathSync(script) : undefined
}

/** Settles as `work` does, or rejects as soon as the signal aborts: the pool destroys the connection then, and that settles `work`. */
export function unlessAborted<T> (work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const aborted = () => reject(signal.reason)
    if (signal.aborted) aborted()
    else signal.addEventListener('abort', aborted)
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', aborted))
  })
}

/** What drivers say of a failure, in one way or another. */
export type Failure = Readonly<Record<'code' | 'errno' | 'severity' | 'message' | 'cause', unknown>>

/**
 * Whether it is true of an error, or of a cause of it: query builders wrap the driver's errors, and so does a commit
 * that came too late. Never of a commit whose outcome nobody knows: what caused that says nothing of what may be done
 * again.
 */
export function somewhere (error: unknown, is: (failure: Failure) => boolean): boolean {
  for (let depth = 0; depth < 5 && typeof error === 'object' && error !== null; depth++) {
    const failure = error as Failure
    if (failure.code === 'FST_POOL_COMMIT_UNKNOWN') return false
    if (is(failure)) return true
    error = failure.cause
  }
  return false
}

/** Where a database is, and as whom to log in, at one create. */
export interface AddressNow { readonly url: string | undefined, readonly connection: Readonly<Record<string, unknown>> }

/** How many answers' secrets are remembered: an error of a connection may come long after the create that made it. */
const remembered = 8

/** `url` and `connection` of a backend's options, where either may be a function that is asked at each create. */
export class Addresses {
  /** Whether there is a function. */
  readonly change: boolean
  readonly #options: Pick<Address, 'url' | 'connection'>
  readonly #answers: AddressNow[] = []
  #secrets: readonly string[]

  constructor ({ url, connection }: Pick<Address, 'url' | 'connection'>) {
    this.#options = { url, connection }
    this.change = typeof url === 'function' || typeof connection === 'function'
    this.#secrets = secretsOf({ url, connection })
  }

  /** What is secret in what was given, and in the last answers. Another list where there are others. */
  get secrets (): readonly string[] {
    return this.#secrets
  }

  /**
   * The address as of now.
   *
   * @throws what a function throws; `FST_POOL_BAD_OPTIONS` where it answers something else; the signal's reason, where a function takes too long
   */
  async now (signal: AbortSignal): Promise<AddressNow> {
    const { url, connection = {} } = this.#options
    const ask = <T>(option: T | (() => T | Promise<T>)): Promise<T> => unlessAborted((async () => typeof option === 'function' ? await (option as () => T | Promise<T>)() : option)(), signal)
    const answer: AddressNow = { url: await ask<string | undefined>(url), connection: await ask<AddressNow['connection']>(connection) }
    if (!this.change) return answer
    if (typeof url === 'function' && (typeof answer.url !== 'string' || answer.url === '')) throw badOption('url()', answer.url, 'a text that is not empty')
    if (typeof answer.connection !== 'object' || answer.connection === null || Array.isArray(answer.connection)) throw badOption('connection()', answer.connection, 'an object')
    this.#answers.push(answer)
    if (this.#answers.length > remembered) this.#answers.shift()
    this.#secrets = secretsOf({ url: this.#answers.map((one) => one.url), connection: this.#answers.map((one) => one.connection) })
    return answer
  }

  /** What was given, where nothing is to be asked. */
  get fixed (): AddressNow {
    const { url, connection = {} } = this.#options
    return { url: typeof url === 'string' ? url : undefined, connection: typeof connection === 'function' ? {} : connection }
  }
}
