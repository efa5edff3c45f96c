import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { mainFile } from './driver.js'

/** What a server takes for a name. */
interface Rules {
  /** In bytes. */
  readonly longest: number
  /** Whether a name may have spaces. */
  readonly spaces?: boolean
}

/** Where nothing says what the app's name is. */
const ours = 'fastify-pool'

let usual: string | undefined

/**
 * By which name a server shows the app's connections to whoever looks at them, in letters that every server takes.
 *
 * @param given the option `appName`; undefined: the name in the app's package.json
 */
export function appNameOf (given: string | undefined, { longest, spaces = true }: Rules): string {
  const name = given ?? (usual ??= usualName(mainFile(), process.cwd()))
  const clean = name.replace(spaces ? /[^ -~]+/g : /[^!-~]+/g, '-').slice(0, longest)
  return /[a-z0-9]/i.test(clean) ? clean : ours
}

/**
 * The name of the package that the app is: of its main file, or where that is a tool's (in node_modules) or there is
 * none, of the working directory.
 */
export function usualName (main: string | undefined, cwd: string): string {
  const isTool = main === undefined || /[\\/]node_modules[\\/]/.test(main)
  return (isTool ? undefined : nameAbove(dirname(main))) ?? nameAbove(cwd) ?? ours
}

/** The name in the nearest package.json that has one. */
function nameAbove (folder: string): string | undefined {
  const name = nameIn(join(folder, 'package.json'))
  if (name !== undefined) return name
  const above = dirname(folder)
  return above === folder ? undefined : nameAbove(above)
}

function nameIn (file: string): string | undefined {
  try {
    const { name } = JSON.parse(readFileSync(file, 'utf8')) as { name?: unknown }
    return typeof name === 'string' && name !== '' ? name : undefined
  } catch {
    // There is none, or it is no JSON: that is Node's to say, or npm's.
    return undefined
  }
}
