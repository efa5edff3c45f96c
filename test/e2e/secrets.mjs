// Registers, for secrets.test.ts: what a process says, and whether anything keeps it alive.
import { inspect } from 'node:util'
import Fastify from 'fastify'
import pool from 'fastify-pool'

const { cases, crash } = JSON.parse(process.argv[2])

// A JSON text has no undefined and no NaN, and a case may need one.
const revive = (value) => value === 'NaN'
  ? NaN
  : typeof value === 'object' &&
  value !== null
    ? Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, revive(inner)]))
    : value

for (const options of cases) {
  const app = Fastify({ logger: { level: 'trace' } })
  if (crash) {
    await app.register(pool, revive(options))
    continue
  }
  try {
    await app.register(pool, revive(options))
    console.log('REGISTERED')
  } catch (error) {
    app.log.error(error)
    app.log.fatal({ err: error })
    console.log(inspect(error, { depth: 10, showHidden: true }))
    console.error(error)
    console.log(`FAILED ${error.code}`)
  }
}
// And now nothing: a process ends by itself when nothing of it is open.
