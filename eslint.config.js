import neostandard from 'neostandard'
import { rules } from './test/support/lint.mjs'

const wait = 'Do not wait for time: wait for what is to happen (test/support/until.ts).'

export default [
  ...neostandard({ ts: true, ignores: ['dist/**', '.tap/**', '.cache/**', 'node_modules/**'] }),
  {
    rules: { '@stylistic/max-len': ['error', { code: 120, ignoreUrls: true }] },
  },
  {
    // The title of a test, a text for a server, a message that is expected: each is one text, and stays in one piece.
    files: ['test/**'],
    rules: {
      '@stylistic/max-len': ['error', {
        code: 120,
        ignoreUrls: true,
        ignoreStrings: true,
        ignoreTemplateLiterals: true,
        ignoreRegExpLiterals: true,
      }],
    },
  },
  {
    files: ['test/**/*.ts'],
    plugins: { tests: { rules } },
    rules: { 'tests/no-wall-time': 'error' },
  },
  {
    files: ['test/**/*.ts'],
    // The support waits for all others, the servers that we play wait as real ones do, and what measures goes by the
    // clock.
    ignores: ['test/support/**', 'test/doubles/mongo-wire.ts', 'test/bench/**', 'test/soak/**'],
    rules: {
      'no-restricted-imports': ['error', {
        paths: ['node:timers/promises', 'timers/promises'].map((name) => ({ name, message: wait })),
      }],
      'no-restricted-syntax': ['error', {
        selector: 'CallExpression[callee.name=/^(setTimeout|sleep)$/]', message: wait,
      }],
    },
  },
]
