// `npm run check:rooms [-- folder]`: how large the largest files, classes and functions are, beside their limits. Fails
// where one is over its limit.
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join, relative, resolve, sep } from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'

const root = resolve(process.argv[2] ?? fileURLToPath(new URL('../..', import.meta.url)))

/** In lines; of a class also in fields (parameter properties count) and methods (accessors count). */
const limits = { file: 600, class: 520, fields: 30, methods: 40, function: 60 }
/** How many of each are shown. */
const shown = 3

/** @type {Record<keyof typeof limits, Array<{ name: string, size: number }>>} */
const found = { file: [], class: [], fields: [], methods: [], function: [] }
let statements = 0

for (const path of sources()) {
  const file = relative(root, path).split(sep).join('/')
  const text = readFileSync(path, 'utf8')
  const source = ts.createSourceFile(file, text, ts.ScriptTarget.Latest, true)
  found.file.push({ name: file, size: text.trimEnd().split('\n').length })
  visit(source, source, file, '')
}

let over = 0
for (const [kind, limit] of Object.entries(limits)) {
  const sorted = found[kind].sort((one, other) => other.size - one.size)
  console.log(`${kind} (limit ${limit}): ${sorted.slice(0, shown).map(({ name, size }) => `${name} ${size}`).join(', ')}`)
  for (const { name, size } of sorted) {
    if (size <= limit) break
    over++
    console.error(`${name}: ${kind} ${size}, limit ${limit}`)
  }
}
console.log(`${found.file.length} files, ${statements} statements`)
if (over > 0) process.exitCode = 1

function sources () {
  const folders = ['lib', 'types', 'example'].map((name) => join(root, name)).filter((folder) => existsSync(folder))
  const files = folders.flatMap((folder) => readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .map((name) => join(folder, name)))
  return [join(root, 'index.ts'), ...files].filter((file) => file.endsWith('.ts') && existsSync(file))
}

/**
 * @param within the names around the node, for its own
 */
function visit (node, source, file, within) {
  if (ts.isStatement(node) && !ts.isBlock(node)) statements++
  let name = within
  if (ts.isClassLike(node)) {
    name = node.name?.text ?? 'class'
    const fields = node.members.filter(ts.isPropertyDeclaration).length +
      (node.members.find(ts.isConstructorDeclaration)?.parameters.filter((one) => one.modifiers !== undefined)
        .length ?? 0)
    const methods = node.members.filter((one) => ts.isMethodDeclaration(one) || ts.isAccessor(one)).length
    const add = (kind, size) => found[kind].push({ name: `${file} ${name}`, size })
    add('class', linesOf(node, source))
    add('fields', fields)
    add('methods', methods)
  } else if (ts.isFunctionLike(node) && node.body !== undefined) {
    const own = node.name?.getText(source) ?? (ts.isConstructorDeclaration(node) ? 'constructor' : '')
    if (own !== '') name = within === '' ? own : `${within}.${own}`
    found.function.push({ name: `${file} ${name}`.trim(), size: linesOf(node, source) })
  }
  ts.forEachChild(node, (child) => { visit(child, source, file, name) })
}

/** Without the comments before it. */
function linesOf (node, source) {
  const line = (position) => source.getLineAndCharacterOfPosition(position).line
  return line(node.end) - line(node.getStart(source)) + 1
}
