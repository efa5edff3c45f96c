// Removes what a build left, so that a deleted source can't live on in dist.
import { rmSync } from 'node:fs'
rmSync(new URL('../../dist', import.meta.url), { recursive: true, force: true })
