// `node --import test/support/typescript.mjs`: TypeScript runs as it is, with each file compiled once for as long as it
// stays the same.
//
// Must be the first of all loaders (run.mjs puts it into NODE_OPTIONS), so that the one that measures coverage sees
// what this one makes.
import { register } from 'node:module'

register('./typescript-hooks.mjs', import.meta.url)
