export * from '../engine/line.js'
