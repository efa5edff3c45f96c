export * from '../engine/errors.js'
export * from '../engine/secrets.js'
