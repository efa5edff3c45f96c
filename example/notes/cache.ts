import type { Connector, PoolOptions } from 'fastify-pool'

/** What the service needs of a cache: a part of ioredis. */
export interface Cache {
  get (key: string): Promise<string | null>
  set (key: string, value: string, unit: 'EX', seconds: number): Promise<unknown>
}

/** Redis where there is a URL; else a cache in memory, with the same face. */
export function cacheOptions (url: string | undefined): PoolOptions {
  return url === undefined ? { connector: memory() } : { backend: 'redis', url, max: 10 }
}

/** A connector need not be more than this. */
function memory (): Connector<Cache> {
  const kept = new Map<string, { readonly value: string, readonly until: number }>()
  return {
    system: 'memory',
    async create () {
      return {
        async get (key) {
          const found = kept.get(key)
          return found !== undefined && found.until > Date.now() ? found.value : null
        },
        async set (key, value, _unit, seconds) { kept.set(key, { value, until: Date.now() + seconds * 1000 }) },
      }
    },
    destroy () {},
  }
}
