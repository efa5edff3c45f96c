export * from './target-pool.js'
