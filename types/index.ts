export type * from './connector.js'
export type * from './errors.js'
export type * from './fastify.js'
export type * from './pool.js'
