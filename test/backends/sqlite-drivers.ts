// The three drivers of SQLite as tests have them, and what they call differently.
import { createRequire } from 'node:module'
import { fileURLToPath, pathToFileURL } from 'node:url'
import LibSql from 'libsql'
import type { Test } from 'tap'
import type { SqliteDatabase, SqliteDriver } from '../../lib/backends/sqlite/handle.js'
import { findBetterSqlite, findNode24, hasNodeSqlite } from '../support/find.mjs'

export type DriverName = 'better-sqlite3' | 'libsql' | 'node:sqlite'

/**
 * better-sqlite3 has to be compiled, so it is no dependency of ours: `npm test` builds it apart, or
 * POOL_TEST_BETTER_SQLITE3 names its folder.
 */
async function betterSqlite (): Promise<SqliteDriver | undefined> {
  const folder = findBetterSqlite()
  if (folder === undefined) return undefined
  const file = createRequire(pathToFileURL(folder + '/')).resolve('better-sqlite3')
  return (await import(pathToFileURL(file).href) as { default: SqliteDriver }).default
}

/** Set in the process of another Node that runs a test file for this driver only. */
const only = process.env.POOL_TEST_SQLITE_DRIVER
/** This process is that other one: what is not of a driver has run already. */
export const isChild = only !== undefined

/**
 * Calls `fn` as a test for each driver. node:sqlite is there from Node 22.16 on: on an older one the whole file runs
 * once more in a newer one, for that driver.
 *
 * @param file the test file's `import.meta.url`
 */
export async function eachDriver (
  t: Test, file: string, fn: (t: Test, Driver: SqliteDriver, name: DriverName) => Promise<void>
): Promise<void> {
  // A CI that has not run a third of the tests must not be green.
  const missing = (what: string, there: boolean) => there ||
    process.env.CI
    ? false
    : `${what} is not there: npm run pretest brings it, or says how to`
  if (!isChild) {
    await t.test('libsql', (t) => fn(t, LibSql, 'libsql'))
    const better = await betterSqlite()
    await t.test('better-sqlite3', { skip: missing('better-sqlite3', better !== undefined) },
      (t) => fn(t, better!, 'better-sqlite3'))
  }
  if (hasNodeSqlite) {
    const { DatabaseSync } =
      process.getBuiltinModule('node:sqlite' as 'node:fs') as unknown as { DatabaseSync: SqliteDriver }
    await t.test('node:sqlite', (t) => fn(t, DatabaseSync, 'node:sqlite'))
    return
  }
  const binary = findNode24()
  const env: NodeJS.ProcessEnv = {
    ...process.env, POOL_TEST_SQLITE_DRIVER: 'node:sqlite', NODE_NO_WARNINGS: '1', _TAPJS_PROCESSINFO_COVERAGE_: '0',
  }
  // Another V8 tells of the same files in other pieces, and where the two are added up lines are lost.
  delete env.NODE_V8_COVERAGE
  await t.test('node:sqlite, on a newer Node', { skip: missing('a Node with node:sqlite', binary !== undefined) }, async (t) => {
    await t.spawn(binary!, [...process.execArgv, fileURLToPath(file)], { env }, 'in its process')
  })
}

/** What Node's own calls differently. */
interface Native { readonly isOpen?: boolean, readonly isTransaction?: boolean }

export const isOpen = (db: SqliteDatabase): boolean => (db as Native).isOpen ?? db.open
export const inTransaction = (db: SqliteDatabase): boolean => (db as Native).isTransaction ?? db.inTransaction

const numbers: Readonly<Record<number, string>> = {
  1: 'SQLITE_ERROR',
  5: 'SQLITE_BUSY',
  8: 'SQLITE_READONLY',
  9: 'SQLITE_INTERRUPT',
  13: 'SQLITE_FULL',
  19: 'SQLITE_CONSTRAINT',
  275: 'SQLITE_CONSTRAINT_CHECK',
  517: 'SQLITE_BUSY_SNAPSHOT',
  787: 'SQLITE_CONSTRAINT_FOREIGNKEY',
  1555: 'SQLITE_CONSTRAINT_PRIMARYKEY',
  1811: 'SQLITE_CONSTRAINT_TRIGGER',
  2067: 'SQLITE_CONSTRAINT_UNIQUE',
}

/** SQLite's code of a driver's error: Node's own has it as a number. */
export function codeOf (error: unknown): string | undefined {
  const { code, errcode } = (error ?? {}) as { code?: string, errcode?: number }
  return code === 'ERR_SQLITE_ERROR' ? numbers[errcode!] ?? `SQLITE ${errcode}` : code
}

/** What a function throws. */
export function thrownBy (fn: () => unknown): unknown {
  try {
    fn()
    return undefined
  } catch (error) {
    return error
  }
}
