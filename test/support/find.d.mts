/** A server that can be started. */
export interface Found {
  readonly kind: 'Redis' | 'MongoDB' | 'FerretDB'
  readonly file: string
  readonly how: string
  readonly version: string
}
/** The repository's folder. */
export const root: string
export function which (name: string): string | undefined
export function findRedis (): Found | undefined
export function findMongod (): Found | undefined
export function findFerretdb (): Found | undefined
export function ferretdbBuild (): { readonly module: string, readonly folder: string, readonly file: string, readonly version: string }
