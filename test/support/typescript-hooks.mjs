// The module hooks of typescript.mjs. Types are not checked here: `npm run typecheck` does that.
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, relative, sep } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../..', import.meta.url))
const cache = join(root, '.cache/typescript')
const require = createRequire(import.meta.url)
/** Another compiler, or another way to call it, makes all files anew. */
const compiler = `${require('typescript/package.json').version} ${readFileSync(fileURLToPath(import.meta.url), 'utf8')}`

/** tap's mocks add a query, so it is the path that tells. */
const isOurs = ({ protocol, pathname }, extension) => protocol === 'file:' && pathname.endsWith(extension) &&
  !pathname.includes('/node_modules/')

export async function resolve (specifier, context, next) {
  // What tap would compile with takes a second in each process, for nothing.
  if (specifier.startsWith('@isaacs/ts-node-temp-fork')) return { url: 'data:text/javascript,', shortCircuit: true }
  if (/^(\.\.?\/|file:)/.test(specifier)) {
    const url = new URL(specifier, context.parentURL)
    if (isOurs(url, '.js')) {
      url.pathname = `${url.pathname.slice(0, -3)}.ts`
      if (existsSync(fileURLToPath(url))) return { url: url.href, format: 'module', shortCircuit: true }
    }
  }
  return next(specifier, context)
}

export async function load (href, context, next) {
  const url = new URL(href)
  if (!isOurs(url, '.ts')) return next(href, context)
  return { format: 'module', source: compiled(fileURLToPath(url)), shortCircuit: true }
}

/** One file of the cache for each source, so it does not grow; its last line says from what it was made. */
function compiled (path) {
  const text = readFileSync(path, 'utf8')
  const made = `\n// ${createHash('sha256').update(compiler).update(path).update(text).digest('hex')}\n`
  const file = join(cache, `${relative(root, path).replaceAll(sep, '+')}.js`)
  try {
    const kept = readFileSync(file, 'utf8')
    if (kept.endsWith(made)) return kept
  } catch (error) {
    if (error.code !== 'ENOENT') throw error
  }
  const code = compile(path, text) + made
  mkdirSync(dirname(file), { recursive: true })
  // Whole or not at all: other processes read and write it too.
  const unfinished = `${file}.${process.pid}`
  writeFileSync(unfinished, code)
  renameSync(unfinished, file)
  return code
}

function compile (path, text) {
  const ts = require('typescript')
  const { outputText } = ts.transpileModule(text, {
    fileName: path,
    compilerOptions: {
      target: ts.ScriptTarget.ES2022,
      module: ts.ModuleKind.ESNext,
      verbatimModuleSyntax: true,
      isolatedModules: true,
      inlineSourceMap: true,
      inlineSources: true,
    },
  })
  return outputText
}
