// `npm run docs:options`
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { optionsPage } from './options-page.js'
import { root } from './pages.js'

writeFileSync(join(root, 'docs/options.md'), optionsPage())
