// A pool's options from environment variables. The variables: docs/environment.md.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import type { TargetRole } from '../../types/connector.js'
import type { Backend, PoolOptions } from '../../types/plugin.js'
import { PoolError, show } from '../engine/errors.js'

/** What the environment has of one pool: the names behind the prefix, with texts, or numbers once they are checked. */
type Variables = Readonly<Record<string, string | number | undefined>>

/** The values that may hold a secret, which no error shows; each may be in the file that `<name>_FILE` names. */
const secrets = ['URL', 'USER', 'PASSWORD', 'TARGETS']
const integer = (minimum: number, maximum?: number) => ({ type: 'integer', minimum, ...(maximum && { maximum }) })
/** What env-schema checks and converts. The other variables are texts. */
const checked: Readonly<Record<string, object>> = {
  BACKEND: { enum: ['mongodb', 'redis', 'postgresql', 'postgres', 'mysql', 'sqlite'] },
  PORT: integer(1, 65535),
  POOL_MIN: integer(0),
  POOL_MAX: integer(1),
  POOL_SIZE: integer(1),
}
const durations = { POOL_TIMEOUT: 'acquireTimeout', POOL_IDLE: 'idleTimeout', POOL_RECYCLE: 'maxLifetime' } as const
const texts = ['HOST', 'NAME', ...Object.keys(durations)]
const units: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }

/** The backend of a URL's scheme. */
const schemes: Readonly<Record<string, Backend>> = {
  postgres: 'postgresql',
  postgresql: 'postgresql',
  mysql: 'mysql',
  mariadb: 'mysql',
  mongodb: 'mongodb',
  'mongodb+srv': 'mongodb',
  redis: 'redis',
  rediss: 'redis',
  file: 'sqlite',
}

type EnvSchema = (options: { schema: object, data: object, env: false }) => Variables

/**
 * A pool's options from environment variables: `DB_URL`, `DB_POOL_MAX`, ... for the prefix 'DB'. An empty variable is
 * as if absent. The table of variables: docs/environment.md.
 *
 * @param prefix what the names begin with, without the '_' behind it
 * @param env default `process.env`
 * @throws `FST_POOL_BAD_OPTIONS`, naming the variable; never with a value that may be a secret
 */
export function poolOptionsFromEnv (prefix: string, env: NodeJS.ProcessEnv = process.env): PoolOptions {
  const name = (key: string) => `${prefix}_${key}`
  const variables = readVariables(name, env)
  const targets = readTargets(name, text(variables.TARGETS))
  const url = text(variables.URL)
  const backend = backendOf(name, variables, [...url === undefined ? [] : [url], ...targets.map((one) => one.url)])
  const options: Record<string, unknown> = {
    backend,
    ...addressOf(name, backend, variables),
    min: variables.POOL_MIN,
    max: oneOf(name, variables, 'POOL_MAX', 'POOL_SIZE'),
    targets: targets.length === 0 ? undefined : targets,
  }
  for (const [key, option] of Object.entries(durations)) options[option] = readDuration(name(key), variables[key])
  const { min, max } = options as { readonly min?: number, readonly max?: number }
  // Without a max here, the app may add one.
  if (min !== undefined && max !== undefined && min > max) {
    const most = name(variables.POOL_MAX === undefined ? 'POOL_SIZE' : 'POOL_MAX')
    throw wrong(name('POOL_MIN'), `is ${min}`, `at most ${most}, which is ${max}`)
  }
  const given = Object.entries(options).filter(([, value]) => value !== undefined)
  return Object.fromEntries(given) as unknown as PoolOptions
}

/** The variables of one prefix, without the prefix. */
function readVariables (name: (key: string) => string, env: NodeJS.ProcessEnv): Variables {
  const given: Record<string, string> = {}
  for (const key of [...secrets, ...texts, ...Object.keys(checked)]) {
    const value = env[name(key)]
    if (value !== undefined && value !== '') given[key] = value
  }
  for (const key of secrets) {
    const file = env[name(`${key}_FILE`)]
    if (file === undefined || file === '') continue
    if (given[key] !== undefined) throw wrong(name(`${key}_FILE`), 'is given', `none beside ${name(key)}`)
    given[key] = readSecret(name(`${key}_FILE`), file)
  }
  // Loaded here, so that an app that does not read the environment does not load a compiler of schemas.
  const envSchema = createRequire(import.meta.url)('env-schema') as EnvSchema
  try {
    const properties = Object.fromEntries(Object.keys(given).map((key) => [key, checked[key] ?? { type: 'string' }]))
    return envSchema({ schema: { type: 'object', properties }, data: given, env: false })
  } catch (error) {
    const [{ instancePath, message = '', params }] = (error as { readonly errors: readonly [SchemaError] }).errors
    const key = instancePath.slice(1)
    const expected = params.allowedValues?.join(', ') ?? message.replace(/^must be /, '')
    throw wrong(name(key), `is ${shown(given[key]!)}`, expected)
  }
}

interface SchemaError {
  readonly instancePath: string
  readonly message?: string
  readonly params: { readonly allowedValues?: readonly string[] }
}

/** @throws `FST_POOL_BAD_OPTIONS` */
function readSecret (variable: string, file: string): string {
  let content: string
  try {
    content = readFileSync(file, 'utf8').trim()
  } catch (error) {
    throw wrong(variable, `can't be read (${(error as NodeJS.ErrnoException).code})`, 'the path of a file')
  }
  if (content === '') throw wrong(variable, 'names an empty file', 'a file with the value')
  return content
}

/** The servers of a list: `primary=postgres://...,replica=postgres://...`, or URLs alone. */
function readTargets (name: (key: string) => string, list = ''): Array<{ url: string, role?: TargetRole }> {
  const targets = list.split(/[\s,]+/).filter((part) => part !== '')
  return targets.map((target, index) => {
    const [, role, url] = /^(?:(\w+)=)?([a-z][\w+.-]*:.*)$/i.exec(target) ?? []
    if (url === undefined || (role !== undefined && !['primary', 'replica', 'peer'].includes(role))) {
      throw wrong(name('TARGETS'), `has something else as number ${index + 1}`,
        'URLs with commas between them, each perhaps behind primary=, replica= or peer=')
    }
    return { url, ...(role !== undefined && { role: role as TargetRole }) }
  })
}

/** The backend that is named, or follows from the URLs. */
function backendOf (name: (key: string) => string, { BACKEND, HOST, TARGETS }: Variables, urls: string[]): Backend {
  const source = name(TARGETS === undefined ? 'URL' : 'TARGETS')
  let backend = BACKEND === 'postgres' ? 'postgresql' : BACKEND as Backend | undefined
  for (const url of urls) {
    const scheme = /^([a-z][a-z0-9+.-]*):/i.exec(url)?.[1]?.toLowerCase() ?? ''
    const found = schemes[scheme] ?? (url === ':memory:' ? 'sqlite' : undefined)
    if (found === undefined) {
      // A path alone is a file of SQLite, where that is said.
      if (backend === 'sqlite' && scheme === '') continue
      throw wrong(source, 'is a URL of no backend', `one that begins with ${Object.keys(schemes).join(':, ')}:`)
    }
    if (backend !== undefined && backend !== found) {
      const why = BACKEND === undefined ? 'as the first is' : `as ${name('BACKEND')} says`
      throw wrong(source, `is a URL of ${found}`, `one of ${backend}, ${why}`)
    }
    backend = found
  }
  if (backend === undefined) {
    throw wrong(name(HOST === undefined ? 'URL' : 'BACKEND'), 'is missing', HOST === undefined
      ? `a URL, or ${name('BACKEND')} and ${name('HOST')}`
      : 'the name of a backend, since no URL says it')
  }
  return backend
}

/** Where the database is, and as whom to log in. */
function addressOf (name: (key: string) => string, backend: Backend, variables: Variables): object {
  const { HOST: host, PORT: port, NAME: database } = variables
  const [url, user, password] = [variables.URL, variables.USER, variables.PASSWORD].map(text)
  const alone = { URL: ['TARGETS', 'HOST', 'PORT'], TARGETS: ['HOST', 'PORT'] }
  for (const [key, others] of Object.entries(alone)) {
    const other = others.find((one) => variables[one] !== undefined)
    if (variables[key] !== undefined && other !== undefined) {
      throw wrong(name(other), 'is given', `none beside ${name(key)}`)
    }
  }
  if (backend === 'sqlite') {
    const other = ['HOST', 'PORT', 'USER', 'PASSWORD', 'TARGETS'].find((key) => variables[key] !== undefined)
    if (other !== undefined) throw wrong(name(other), 'is given', `none, since sqlite is a file (${name('URL')})`)
    if (url !== undefined && database !== undefined) {
      throw wrong(name('NAME'), 'is given', `none beside ${name('URL')}, since sqlite is one file`)
    }
    return { url: url ?? database }
  }
  const connection = user === undefined && password === undefined ? undefined : loginOf(backend, user, password)
  return { url, host, port, database, connection }
}

/** What each driver calls them. */
function loginOf (backend: Backend, user: string | undefined, password: string | undefined): object {
  const isNamed = backend === 'mongodb' || backend === 'redis'
  const login = {
    ...(user !== undefined && { [isNamed ? 'username' : 'user']: user }),
    ...(password !== undefined && { password }),
  }
  return backend === 'mongodb' ? { auth: login } : login
}

/** A variable that has two names. */
function oneOf (name: (key: string) => string, variables: Variables, key: string, other: string): unknown {
  if (variables[key] !== undefined && variables[other] !== undefined && variables[key] !== variables[other]) {
    throw wrong(name(other), `is ${variables[other]}`, `one of the two, or ${name(key)}'s ${variables[key]}`)
  }
  return variables[key] ?? variables[other]
}

/** '30s' as milliseconds. */
function readDuration (variable: string, value: string | number | undefined): number | undefined {
  if (value === undefined) return undefined
  const [, number, unit] = /^(\d+(?:\.\d+)?)(ms|s|m|h|d)?$/.exec(String(value).trim()) ?? []
  if (number === undefined) throw wrong(variable, `is ${shown(String(value))}`, 'a duration: 500ms, 30s, 10m or 1h')
  if (unit === undefined) {
    throw wrong(variable, `is '${number}', without a unit`, `${number}s for seconds or ${number}ms for milliseconds`)
  }
  return Math.round(Number(number) * units[unit]!)
}

function text (value: string | number | undefined): string | undefined {
  return value === undefined ? undefined : String(value)
}

function shown (value: string): string {
  return show(value) === value ? `'${value}'` : 'a text'
}

function wrong (variable: string, what: string, expected: string): PoolError {
  return new PoolError('FST_POOL_BAD_OPTIONS', `the environment variable ${variable} ${what}: expected ${expected}`)
}
