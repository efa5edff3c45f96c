export * from '../engine/transaction.js'
