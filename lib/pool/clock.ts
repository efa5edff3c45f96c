export * from '../engine/time.js'
