// `npm run check:floors [-- folder]`: imports point down only. `import type` is no arrow: it is gone at run time.
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative, resolve, sep } from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'

const root = resolve(process.argv[2] ?? fileURLToPath(new URL('../..', import.meta.url)))

/** From top to bottom. A file may import from its own floor and from those below. */
const floors = ['index.ts', 'lib/fastify', 'lib/balance', 'lib/wrap', 'lib/backends', 'lib/pool', 'lib/engine', 'types']

/** What a floor may import beyond that rule's reach: packages, and where it is narrower than the rule, which files. */
const node = (name) => name.startsWith('node:')
const packages = {
  // Each adapter imports the library that it is for, and nobody imports an adapter but its user.
  'lib/wrap': (name, file) => node(name) || file === `lib/wrap/${name}.ts`,
  'lib/backends': node,
  'lib/pool': (name, file) => node(name) ||
    (/^typebox(\/|$)/.test(name) && file === 'lib/pool/options.ts'),
  'lib/engine': (name, file) => node(name) || (name === 'cockatiel' && file.endsWith('/circuit.ts')),
  types: () => false,
}
/** One pool's machine: only what puts a face on it imports it. */
const machine = 'lib/engine/engine.ts'
/** All that a backend may know of a pool. */
const vocabulary = ['lib/pool/errors.ts', 'lib/pool/options.ts', 'lib/engine/errors.ts', 'lib/engine/secrets.ts']
const files = {
  'lib/fastify': (file) => floorOf(file) !== 'lib/wrap' && file !== machine,
  'lib/balance': (file) => floorOf(file) !== 'lib/wrap',
  'lib/backends': (file) => floorOf(file) === 'lib/backends' || floorOf(file) === 'types' || vocabulary.includes(file),
  types: () => false,
}

function floorOf (file) {
  return floors.find((floor) => file === floor || file.startsWith(floor + '/'))
}

function sources (folder) {
  if (!existsSync(folder)) return []
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((name) => /\.[cm]?tsx?$/.test(name) && !/\.d\.[cm]?ts$/.test(name))
    .map((name) => join(folder, name))
}

/** Every import that is there at run time. */
function * importsOf (source) {
  const specifier = (node) => node && ts.isStringLiteralLike(node) ? node.text : undefined
  const found = []
  const visit = (node) => {
    if (ts.isImportDeclaration(node) && !node.importClause?.isTypeOnly) found.push([node, specifier(node.moduleSpecifier), 'static'])
    else if (ts.isExportDeclaration(node) && node.moduleSpecifier && !node.isTypeOnly) found.push([node, specifier(node.moduleSpecifier), 'static'])
    else if (ts.isImportEqualsDeclaration(node) && !node.isTypeOnly && ts.isExternalModuleReference(node.moduleReference)) {
      found.push([node, specifier(node.moduleReference.expression), 'static'])
    } else if (ts.isCallExpression(node) && (node.expression.kind === ts.SyntaxKind.ImportKeyword || node.expression.getText(source) === 'require')) {
      found.push([node, specifier(node.arguments[0]), 'dynamic'])
    }
    ts.forEachChild(node, visit)
  }
  visit(source)
  for (const [node, name, how] of found) yield { name, how, line: source.getLineAndCharacterOfPosition(node.getStart(source)).line + 1 }
}

/** @returns why it may not be imported, or undefined */
function objection (file, { name, how }) {
  const floor = floorOf(file)
  if (name === undefined) return floor === 'lib/backends' ? undefined : 'imports what is known at run time only'
  if (!name.startsWith('.')) {
    const allowed = packages[floor]
    if (allowed === undefined || allowed(name, file)) return undefined
    return floor === 'lib/backends' && how === 'dynamic' ? undefined : `${floor} may not import the package ${name}`
  }
  const target = relative(root, resolve(root, dirname(file), name)).split(sep).join('/').replace(/\.([cm]?)js$/, '.$1ts')
  const targetFloor = floorOf(target)
  if (targetFloor === undefined) return `${target} is on no floor`
  if (floors.indexOf(targetFloor) < floors.indexOf(floor)) return `points up, from ${floor} to ${targetFloor}`
  return files[floor]?.(target) === false ? `${floor} may not import ${target}` : undefined
}

const all = [join(root, 'index.ts'), ...sources(join(root, 'lib')), ...sources(join(root, 'types'))].filter((file) => existsSync(file))
let imports = 0
let wrong = 0
for (const path of all) {
  const file = relative(root, path).split(sep).join('/')
  if (floorOf(file) === undefined) {
    wrong++
    console.error(`${file}:1 is on no floor`)
    continue
  }
  const source = ts.createSourceFile(file, readFileSync(path, 'utf8'), ts.ScriptTarget.Latest, true)
  for (const one of importsOf(source)) {
    imports++
    const why = objection(file, one)
    if (why === undefined) continue
    wrong++
    console.error(`${file}:${one.line} '${one.name ?? '?'}': ${why}`)
  }
}
if (wrong > 0) process.exitCode = 1
else console.log(`floors: ${imports} imports in ${all.length} files, all point down`)
