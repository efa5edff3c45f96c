/** A server that can be started. */
export interface Found {
  readonly kind: 'Redis' | 'MongoDB' | 'FerretDB' | 'PostgreSQL' | 'MariaDB' | 'PgBouncer'
  readonly file: string
  readonly how: string
  readonly version: string
}
/** The repository's folder. */
export const root: string
export function which (name: string): string | undefined
/** Whether a process is alive. */
export function runs (pid: number): boolean
/** Removes what a killed PostgreSQL with that data folder left outside of it, or what would keep it from starting again. */
export function clearPostgres (dir: string): void
export function findRedis (): Found | undefined
export function findPostgres (): Found | undefined
export function findMariadb (): Found | undefined
export function findPgbouncer (): Found | undefined
export function findMongod (): Found | undefined
export function findFerretdb (): Found | undefined
export function ferretdbBuild (): { readonly module: string, readonly folder: string, readonly file: string, readonly version: string }
export function findBetterSqlite (): string | undefined
export function betterSqliteBuild (): { readonly version: string, readonly folder: string }
export function findNode24 (): string | undefined
export function node24Build (): { readonly module: string, readonly folder: string }
export const hasNodeSqlite: boolean
