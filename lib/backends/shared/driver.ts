import { existsSync, realpathSync } from 'node:fs'
// A namespace import, since bundlers replace an imported `createRequire`.
import * as modules from 'node:module'
import { join } from 'node:path'
import { PoolError, badOption, show } from '../../engine/errors.js'

/** How to load a driver, and how to recognize it. */
export interface DriverKind<T> {
  readonly backend: string
  /** The name of its package. */
  readonly name: string
  /** A package that depends on the driver: its copy of the driver is used, so that there is one. */
  readonly via?: string
  /** What the option `driver` may be, in the words of an error. */
  readonly expected: string
  /** The driver, where `module` is it. */
  read (module: Module): T | undefined
  /** Whether `module` belongs to the driver but does not export it: then the driver is loaded by its name. */
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
  throw new PoolError('FST_POOL_MISSING_DRIVER',
    `backend '${backend}' needs ${expected}: the installed ${name} is something else`)
}

function readModule<T> (kind: DriverKind<T>, module: unknown): T | undefined {
  for (const face of facesOf(module)) {
    const driver = kind.read(face)
    if (driver !== undefined) return driver
  }
  return undefined
}

/**
 * A module and its default exports: `import` and bundlers put what a CommonJS module exports there, sometimes nested.
 */
export function facesOf (module: unknown): Module[] {
  const faces: Module[] = []
  for (let face = module; isModule(face) && !faces.includes(face); face = face.default) faces.push(face)
  return faces
}

function isModule (value: unknown): value is Module {
  return typeof value === 'function' || (typeof value === 'object' && value !== null)
}

/** The error of a wrong option `driver`. It shows names only, never values. */
export function badDriver (given: unknown, expected: string): PoolError {
  if (!isModule(given)) return badOption('driver', given, expected)
  const isFunction = typeof given === 'function'
  const keys = isFunction ? [Reflect.get(given, 'name')] : Object.keys(given).slice(0, 5)
  const names = keys.map((key) => show(String(key))).join(', ')
  const what = `${isFunction ? 'a function' : 'an object'}${names === '' ? '' : ` (${names})`}`
  return new PoolError('FST_POOL_BAD_OPTIONS', `option driver is ${what}: expected ${expected}`)
}

/**
 * Loads an optional package by its name, so that instrumentation sees it.
 *
 * @throws `FST_POOL_MISSING_DRIVER`: it is not installed, or can't be loaded, as `cause` says
 */
export function requirePackage (name: string, options: { via?: string | undefined, backend: string }): unknown {
  const { via, backend } = options
  const wanted = via ?? name
  try {
    const { require, error } = findRequire(wanted)
    if (require === undefined) throw error
    return via === undefined ? require(name) : modules.createRequire(require.resolve(via))(name)
  } catch (error) {
    throw new PoolError('FST_POOL_MISSING_DRIVER',
      `backend '${backend}' needs the package ${wanted}: npm install ${wanted}`, { cause: error })
  }
}

/** Whether `requirePackage` would find the package. */
export function isInstalled (name: string): boolean {
  return findRequire(name).require !== undefined
}

/**
 * The first `require` that finds the package: from here, from the app's main file, or from the working directory. In a
 * bundle our code is in a file of the app, and its `import.meta.url` is undefined, or where our file was when the
 * bundle was made.
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

/** The main file of the app. A REPL has none. */
export function mainFile (): string | undefined {
  const [, script] = process.argv
  return script !== undefined && existsSync(script) ? realpathSync(script) : undefined
}
