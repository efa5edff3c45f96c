// Reading options by a schema: every option is checked, an error names the option, what was given and what is expected.
//
// The schemas are plain JSON Schema with TypeBox's `type: 'function'`. The members of objects are read one by one, so
// all that is left to check is single values, of a few kinds: loading TypeBox's validator for that would take longer
// than loading Fastify. A test holds `isValid` equal to it.
import { PoolError, badOption, show, undefinedUrl } from '../engine/errors.js'
import { LONGEST } from '../engine/time.js'

/** The part of JSON Schema that options need. */
export interface Schema {
  /** What the value must be, in the words of the error. */
  readonly title?: string
  readonly type?: string
  readonly const?: unknown
  readonly enum?: readonly unknown[]
  readonly minimum?: number
  readonly maximum?: number
  readonly exclusiveMinimum?: number
  readonly exclusiveMaximum?: number
  readonly minLength?: number
  readonly pattern?: string
  readonly minItems?: number
  readonly minProperties?: number
  readonly items?: Schema
  readonly default?: unknown
  readonly properties?: Properties
  readonly required?: readonly string[]
  readonly additionalProperties?: boolean | Schema
  /** Always two: a value, and beside it another kind of value or an object with properties. */
  readonly anyOf?: readonly [Schema, Schema]
}
export type Properties = Readonly<Record<string, Schema>>
export interface ObjectSchema extends Schema { readonly type: 'object', readonly properties: Properties }

/** Options by name, before or after the check. */
export type Options = Readonly<Record<string, unknown>>

/** A time in ms that 0 does not turn off. */
export const deadlineOnly = { type: 'number', minimum: 1, maximum: LONGEST } as const
export const deadline = (ms: number) => ({ ...deadlineOnly, default: ms }) as const
/** A time in ms that 0 turns off. */
export const timeOnly = { type: 'number', minimum: 0, maximum: LONGEST } as const
export const time = (ms: number) => ({ ...timeOnly, default: ms }) as const
export const optionalFunction = { type: 'function' } as const
/** The name of a pool or a target. */
export const nameSchema = {
  type: 'string',
  pattern: '^[A-Za-z_$][\\w$-]*$',
  title: "a name of letters, digits, '_', '$' and '-', a letter first",
} as const

const kinds: Readonly<Record<string, (value: unknown) => boolean>> = {
  string: (value) => typeof value === 'string',
  number: Number.isFinite,
  integer: Number.isInteger,
  boolean: (value) => typeof value === 'boolean',
  function: (value) => typeof value === 'function',
  object: isObject,
  array: Array.isArray,
}

/** Whether a value is what a schema says. The members of an object or an array are not looked at. */
export function isValid (schema: Schema, value: unknown): boolean {
  const { type, enum: values, minLength = 0, pattern, minimum = -Infinity, maximum = Infinity } = schema
  if (type !== undefined && !kinds[type]!(value)) return false
  if ('const' in schema && value !== schema.const) return false
  if (values !== undefined && !values.includes(value)) return false
  if (typeof value === 'string') {
    return value.length >= minLength && (pattern === undefined || new RegExp(pattern, 'u').test(value))
  }
  const { exclusiveMinimum = -Infinity, exclusiveMaximum = Infinity } = schema
  return typeof value !== 'number' ||
    (value >= minimum && value <= maximum && value > exclusiveMinimum && value < exclusiveMaximum)
}

/**
 * What is given and not `undefined`.
 *
 * @throws where it is no object, has names that are not in the schema, or a `url` that is undefined
 */
export function readObject (properties: Properties, value: unknown, path: string): Options {
  if (!isObject(value)) throw badOption(path, value, 'an object')
  const given: Record<string, unknown> = {}
  // With what it inherits: whoever would read `value.max` finds that too.
  for (const key in value) {
    if (value[key] === undefined) {
      if (key === 'url') throw undefinedUrl(path)
      continue
    }
    if (!Object.hasOwn(properties, key)) throw unknownOption(key, Object.keys(properties), path)
    given[key] = value[key]
  }
  return given
}

/** Every option of the schema that is given or has a default. */
export function readAll (properties: Properties, given: Options, path: string): Record<string, unknown> {
  const result: Record<string, unknown> = {}
  for (const [key, schema] of Object.entries(properties)) {
    const value = given[key] === undefined ? schema.default : given[key]
    if (value !== undefined) result[key] = read(schema, value, join(path, key))
  }
  return result
}

export function read (schema: Schema, value: unknown, path: string): unknown {
  const { anyOf, items, properties } = schema
  if (anyOf !== undefined) {
    if (isValid(anyOf[0], value)) return value
    if (!isObject(value) && anyOf[1].properties !== undefined) throw badOption(path, value, expected(schema))
    return read(schema.title === undefined ? anyOf[1] : { ...anyOf[1], title: schema.title }, value, path)
  }
  if (items !== undefined) {
    if (!Array.isArray(value) || value.length < (schema.minItems ?? 0)) throw badOption(path, value, expected(schema))
    return Object.freeze(value.map((item, index) => read(items, item, join(path, String(index)))))
  }
  if (properties === undefined) {
    if (!isValid(schema, value)) throw badOption(path, value, expected(schema))
    return value
  }
  if (!isObject(value)) throw badOption(path, value, expected(schema))
  if (schema.additionalProperties === false) {
    const given = readObject(properties, value, path)
    for (const key of schema.required ?? []) read(properties[key]!, given[key], join(path, key))
    return Object.freeze(readAll(properties, given, path))
  }
  // An object of the user's own, with methods that it may have from its class: it is checked, and used as it is.
  for (const [key, inner] of Object.entries(properties)) {
    if (value[key] !== undefined || schema.required?.includes(key) === true) read(inner, value[key], join(path, key))
  }
  return value
}

export function expected ({ title, type, enum: values, minimum, maximum, anyOf }: Schema): string {
  if (title !== undefined) return title
  if (anyOf !== undefined) return `${anyOf[0].type === 'boolean' ? 'true, false' : 'false'} or ${expected(anyOf[1])}`
  if (values !== undefined) {
    return either(values.map((value) => typeof value === 'string' ? `'${value}'` : String(value)))
  }
  if (type === 'number' || type === 'integer') {
    const what = type === 'integer' ? 'an integer' : 'a number of milliseconds'
    return maximum === undefined ? `${what} of at least ${minimum}` : `${what} from ${minimum} to ${maximum}`
  }
  if (type === 'boolean') return 'true or false'
  return type === 'function' ? 'a function' : 'an object'
}

function either (texts: readonly string[]): string {
  return texts.length < 2 ? texts.join() : `${texts.slice(0, -1).join(', ')} or ${texts.at(-1)}`
}

function unknownOption (key: string, known: readonly string[], path: string): PoolError {
  const near = nearest(key, known)
  const hint = near !== undefined
    ? `: did you mean ${near}?`
    : known.length <= 6
      ? `: expected ${either(known)}`
      : known.includes('backend') ? ": the driver's own go into connection" : ''
  return new PoolError('FST_POOL_BAD_OPTIONS', `unknown option ${join(path, show(key))}${hint}`)
}

/** The known name that a slip of the finger, or another pool's habit ('idleTimeoutMillis'), may have meant. */
function nearest (name: string, known: readonly string[]): string | undefined {
  const word = name.slice(0, 40).replace(/(millis(econds)?|ms)$/i, '').toLowerCase()
  let best: string | undefined
  let least = Math.min(3, Math.ceil(word.length / 4)) + 1
  for (const candidate of known) {
    const distance = edits(word, candidate.toLowerCase())
    if (distance < least) [best, least] = [candidate, distance]
  }
  return best
}

/** How many letters to add, remove, change or swap with their neighbour. */
function edits (a: string, b: string): number {
  let previous: number[] = []
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const swapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1] ? previous[j - 2]! + 1 : Infinity
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1), swapped))
    }
    previous = row
    row = next
  }
  return row[b.length]!
}

export function isObject (value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

export function join (path: string, key: string): string {
  return path === '' ? key : `${path}.${key}`
}
