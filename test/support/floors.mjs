// `npm run check:floors [-- folder]`: imports point down only, and no files import each other in a circle. `import
// type` counts too: whoever reads a file has to follow it.
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative, resolve, sep } from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'

const root = resolve(process.argv[2] ?? fileURLToPath(new URL('../..', import.meta.url)))

/** From top to bottom. A file may import from its own floor and from those below. */
const floors = [
  'index.ts', 'lib/compat', 'lib/fastify', 'lib/balance', 'lib/wrap', 'lib/backends', 'lib/pool', 'lib/engine', 'types',
]

const node = (name) => name.startsWith('node:')
/** Which packages a floor may import; floors that are not here may import any. */
const packages = {
  // Each adapter imports the library that it is for, and nobody imports an adapter but its user.
  'lib/wrap': (name, file) => node(name) || file === `lib/wrap/${name}.ts`,
  'lib/backends': node,
  'lib/pool': node,
  'lib/engine': node,
  types: () => false,
}
/** The same for `import type`. Drivers' types come from types/drivers.ts, which works without them. */
const typePackages = {
  ...packages,
  'lib/backends': () => true,
  types: (name) => node(name) || name === 'fastify',
}
const forBackends = /^lib\/(engine\/|pool\/schema\.ts$)/
/** Where a floor may import less than all of the floors below. */
const files = {
  'lib/fastify': (file) => floorOf(file) !== 'lib/wrap' && file !== engine,
  'lib/balance': (file) => floorOf(file) !== 'lib/wrap',
  'lib/backends': (file) => file !== engine && (floorOf(file) !== 'lib/pool' || forBackends.test(file)),
  'lib/wrap': (file) => file !== engine,
  'lib/compat': (file) => floorOf(file) !== 'lib/wrap' && file !== engine,
  'index.ts': (file) => file !== engine && floorOf(file) !== 'lib/compat',
}
/** The machine of one pool: only its faces know it. */
const engine = 'lib/engine/engine.ts'

function floorOf (file) {
  return floors.find((floor) => file === floor || file.startsWith(floor + '/'))
}

function sources (folder) {
  if (!existsSync(folder)) return []
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((name) => /\.[cm]?tsx?$/.test(name) && !/\.d\.[cm]?ts$/.test(name))
    .map((name) => join(folder, name))
}

/** Every import: static, dynamic, and of types only. */
function * importsOf (source) {
  const specifier = (node) => node && ts.isStringLiteralLike(node) ? node.text : undefined
  const found = []
  const visit = (node) => {
    if (ts.isImportDeclaration(node)) {
      found.push([node, specifier(node.moduleSpecifier), node.importClause?.isTypeOnly ? 'type' : 'static'])
    } else if (ts.isExportDeclaration(node) && node.moduleSpecifier) {
      found.push([node, specifier(node.moduleSpecifier), node.isTypeOnly ? 'type' : 'static'])
    } else if (ts.isImportEqualsDeclaration(node) && ts.isExternalModuleReference(node.moduleReference)) {
      found.push([node, specifier(node.moduleReference.expression), node.isTypeOnly ? 'type' : 'static'])
    } else if (ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument)) {
      found.push([node, specifier(node.argument.literal), 'type'])
    } else if (ts.isCallExpression(node) &&
      (node.expression.kind === ts.SyntaxKind.ImportKeyword || node.expression.getText(source) === 'require')) {
      found.push([node, specifier(node.arguments[0]), 'dynamic'])
    }
    ts.forEachChild(node, visit)
  }
  visit(source)
  for (const [node, name, how] of found) {
    yield { name, how, line: source.getLineAndCharacterOfPosition(node.getStart(source)).line + 1 }
  }
}

/** The file that a relative import is of, from the root. */
function targetOf (file, name) {
  return relative(root, resolve(root, dirname(file), name)).split(sep).join('/').replace(/\.([cm]?)js$/, '.$1ts')
}

/** @returns why it may not be imported, or undefined */
function objection (file, { name, how }) {
  const floor = floorOf(file)
  if (name === undefined) return floor === 'lib/backends' ? undefined : 'imports what is known at run time only'
  if (!name.startsWith('.')) {
    if (file === 'types/drivers.ts') return undefined
    const allowed = (how === 'type' ? typePackages : packages)[floor]
    if (allowed === undefined || allowed(name, file)) return undefined
    return floor === 'lib/backends' && how === 'dynamic' ? undefined : `${floor} may not import the package ${name}`
  }
  const target = targetOf(file, name)
  const targetFloor = floorOf(target)
  if (targetFloor === undefined) return `${target} is on no floor`
  if (floor === 'types' && how !== 'type') return `types may not import ${target} at run time`
  if (floors.indexOf(targetFloor) < floors.indexOf(floor)) return `points up, from ${floor} to ${targetFloor}`
  return files[floor]?.(target) === false ? `${floor} may not import ${target}` : undefined
}

/**
 * Files that import each other, directly or through others: Tarjan's strongly connected components
 * (https://doi.org/10.1137/0201010) of more than one file.
 *
 * @param graph the files that each file imports
 */
function circlesOf (graph) {
  const index = new Map()
  const low = new Map()
  const stack = []
  const circles = []
  const visit = (file) => {
    index.set(file, index.size)
    low.set(file, index.get(file))
    stack.push(file)
    for (const other of graph.get(file)) {
      if (!graph.has(other)) continue
      if (!index.has(other)) visit(other)
      if (stack.includes(other)) low.set(file, Math.min(low.get(file), low.get(other)))
    }
    if (low.get(file) !== index.get(file)) return
    const circle = stack.splice(stack.indexOf(file))
    if (circle.length > 1) circles.push(circle.sort())
  }
  for (const file of graph.keys()) if (!index.has(file)) visit(file)
  return circles
}

const all = [join(root, 'index.ts'), ...sources(join(root, 'lib')), ...sources(join(root, 'types'))]
  .filter((file) => existsSync(file))
const graph = new Map()
let imports = 0
let wrong = 0
const tell = (message) => {
  wrong++
  console.error(message)
}
for (const path of all) {
  const file = relative(root, path).split(sep).join('/')
  if (floorOf(file) === undefined) {
    tell(`${file}:1 is on no floor`)
    continue
  }
  const source = ts.createSourceFile(file, readFileSync(path, 'utf8'), ts.ScriptTarget.Latest, true)
  const own = [...importsOf(source)]
  imports += own.length
  for (const one of own) {
    const why = objection(file, one)
    if (why !== undefined) tell(`${file}:${one.line} '${one.name ?? '?'}': ${why}`)
  }
  const targets = own.filter(({ name }) => name?.startsWith('.')).map(({ name }) => targetOf(file, name))
  graph.set(file, targets)
}
for (const circle of circlesOf(graph)) tell(`${circle[0]}:1 is in a circle: ${circle.join(', ')}`)
if (wrong > 0) process.exitCode = 1
else console.log(`floors: ${imports} imports in ${all.length} files, all point down, no circle`)
