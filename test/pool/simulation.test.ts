import t from 'tap'
import fc from 'fast-check'
import { some } from '../support/full.js'
import { plans, simulate, watchProcess } from './simulation.js'

// The same plans each time, so that the suite says the same each time. `SIM_SEED=0` draws new ones; `SIM_RUNS` says how
// many.
const seed = Number(process.env.SIM_SEED ?? 20_251) || Date.now()
const numRuns = Number(process.env.SIM_RUNS ?? some(2000, 20_000))

t.test('every promise of the engine holds at each rest of a life drawn at random', async (t) => {
  t.comment(`SIM_SEED=${seed} SIM_RUNS=${numRuns}`)
  t.teardown(watchProcess())
  // Its error has the seed, the path to the smallest plan that fails (`{ seed, path }` runs that one alone), and that
  // plan.
  await t.resolves(fc.assert(fc.asyncProperty(plans, simulate), { seed, numRuns }))
})
