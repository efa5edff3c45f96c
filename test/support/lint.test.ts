import { Linter } from 'eslint'
import t from 'tap'

const { rules } = await import('./lint.mjs' as string) as { rules: Record<string, object> }

function complaints (code: string): number {
  const linter = new Linter()
  const config = { plugins: { tests: { rules } }, rules: { 'tests/no-wall-time': 'error' } } as Linter.Config
  return linter.verify(code, config).filter(({ message, ruleId }) => {
    if (ruleId === null) throw new Error(message)
    return true
  }).length
}

const wrong = [
  'const began = performance.now(); t.ok(performance.now() - began < 2000)',
  'const began = Date.now(); const took = Date.now() - began; t.ok(took >= 200 && took < 2000, `${took} ms`)', // eslint-disable-line no-template-curly-in-string
  "import { within } from './failover.js'; const killed = performance.now(); t.ok(first.at - killed < within)",
  'const limit = 2 * 1000; const back = performance.now(); t.notOk(limit < first.at - back)',
  'const back = performance.now(); t.equal(performance.now() - back < 500, true)',
]
for (const code of wrong) t.test(`a comparison with the clock is found: ${code}`, async (t) => { t.ok(complaints(code) > 0) })

const right = [
  'const first = await firstAfter(performance.now()); t.ok(first.round < 20)',
  't.ok(clock.now() - promoted <= 250)',
  'const began = performance.now(); const took = performance.now() - began; const usual = performance.now() - began; t.ok(took < 3 * usual)',
  'const lost = performance.now(); const lasted = performance.now() - lost; const tries = count(); t.ok(tries <= lasted / 500 + 2)',
  'const back = performance.now(); t.same(seen.filter(({ sent }) => sent > back), [])',
  'const began = performance.now(); t.comment(`measured: ${performance.now() - began} ms`)', // eslint-disable-line no-template-curly-in-string
]
for (const code of right) t.test(`anything else is fine: ${code}`, async (t) => { t.equal(complaints(code), 0) })
