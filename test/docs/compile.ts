// Blocks of code of the docs as the compiler sees them: strict, `fastify-pool` being this repository's sources.
import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type * as Ts from 'typescript'
import { givenOf, root, type Block } from './pages.js'

const ts = createRequire(import.meta.url)('typescript') as typeof Ts

/** What is one file for its reader: a block, and those behind it on its page that are marked `more`. */
export interface Chain {
  readonly name: string
  readonly blocks: readonly Block[]
  readonly code: string
  /** One of its blocks is marked `run`. */
  readonly runs: boolean
}

/** @throws where a block is marked `more` and there is none before it */
export function chainsOf (blocks: readonly Block[]): Chain[] {
  const chains: Block[][] = []
  for (const block of blocks) {
    if (!block.marks.includes('more')) chains.push([block])
    else if (chains.length > 0) chains.at(-1)!.push(block)
    else throw new Error(`${block.page}:${block.line}: no block comes before it`)
  }
  return chains.map((blocks) => ({
    name: `${blocks[0]!.page}:${blocks[0]!.line}`,
    blocks,
    code: partsOf(blocks).map(({ code }) => code).join(''),
    runs: blocks.some(({ marks }) => marks.includes('run')),
  }))
}

function partsOf (blocks: readonly Block[]): Array<Pick<Block, 'page' | 'line' | 'code'>> {
  const given = blocks[0] && givenOf(blocks[0].page)
  return [...given === undefined ? [] : [given], ...blocks]
}

/**
 * What a chain adds to other modules, and where the names in that come from: chains with the same additions are
 * compiled together, others apart.
 */
function augmentation (code: string): string {
  const added = [...code.matchAll(/^declare module [^]*?^}/gm)].join('\n')
  const names = new Set(added.match(/\b[A-Z]\w+/g))
  const from = code.match(/^import .*$/gm)?.filter((line) => line.match(/\b[A-Z]\w+/g)?.some((name) => names.has(name)))
  return added === '' ? '' : [added, ...from ?? []].join('\n')
}

/** @returns what the compiler says of each chain that it does not like, with the places on the page */
export function compile (chains: readonly Chain[]): Map<Chain, string[]> {
  const groups = new Map<string, Chain[]>()
  for (const chain of chains) {
    const key = augmentation(chain.code)
    groups.set(key, [...groups.get(key) ?? [], chain])
  }
  const parsed = new Map<string, Ts.SourceFile | undefined>()
  const found = new Map<Chain, string[]>()
  for (const chains of groups.values()) {
    for (const [chain, told] of compileTogether(chains, parsed)) found.set(chain, told)
  }
  return found
}

/** The package's entries, as the sources that they are made of. */
function entries (): Record<string, string[]> {
  const { exports } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as
    { exports: Record<string, string | { default: string }> }
  return Object.fromEntries(Object.entries(exports).flatMap(([entry, target]) => typeof target === 'string'
    ? []
    : [[`fastify-pool${entry.slice(1)}`, [join(root, target.default.replace('./dist/', '').replace(/\.js$/, '.ts'))]]]))
}

const options: Ts.CompilerOptions = {
  strict: true,
  noEmit: true,
  skipLibCheck: true,
  target: ts.ScriptTarget.ES2022,
  lib: ['lib.es2023.d.ts', 'lib.esnext.disposable.d.ts'],
  module: ts.ModuleKind.NodeNext,
  moduleResolution: ts.ModuleResolutionKind.NodeNext,
  types: ['node'],
  paths: entries(),
}

function compileTogether (
  chains: readonly Chain[], parsed: Map<string, Ts.SourceFile | undefined>
): Map<Chain, string[]> {
  const byFile = new Map(chains.map((chain) => [join(root, 'docs', `${chain.name.replace(/\W/g, '-')}.ts`), chain]))
  // The empty export makes a module of what imports nothing, so that it may await.
  const textOf = (file: string) => byFile.has(file) ? `${byFile.get(file)!.code}export {}\n` : undefined
  const host = ts.createCompilerHost(options)
  const { getSourceFile, fileExists, readFile } = host
  host.getCurrentDirectory = () => root
  host.fileExists = (file) => byFile.has(file) || fileExists.call(host, file)
  host.readFile = (file) => textOf(file) ?? readFile.call(host, file)
  host.getSourceFile = (file, how, ...rest) => {
    const text = textOf(file)
    if (text !== undefined) return ts.createSourceFile(file, text, how)
    const key = `${file} ${typeof how === 'object' ? how.impliedNodeFormat : ''}`
    if (!parsed.has(key)) parsed.set(key, getSourceFile.call(host, file, how, ...rest))
    return parsed.get(key)
  }
  const program = ts.createProgram({ rootNames: [...byFile.keys()], options, host })
  const general = [...program.getOptionsDiagnostics(), ...program.getGlobalDiagnostics()]
  if (general.length > 0) throw new Error(general.map((one) => ts.formatDiagnostic(one, host)).join('\n'))
  return new Map([...byFile].map(([file, chain]) => {
    const source = program.getSourceFile(file)!
    const diagnostics = [...program.getSyntacticDiagnostics(source), ...program.getSemanticDiagnostics(source)]
    return [chain, diagnostics.map(({ start = 0, messageText }) => {
      const { line } = source.getLineAndCharacterOfPosition(start)
      return `${placeOf(chain, line)}: ${ts.flattenDiagnosticMessageText(messageText, '\n')}`
    })]
  }))
}

function placeOf ({ blocks }: Chain, line: number): string {
  let left = line
  for (const { page, line: first, code } of partsOf(blocks)) {
    const length = code.split('\n').length - 1
    if (left < length) return `${page}:${first + left}`
    left -= length
  }
  return `${blocks[0]?.page}: behind the last block`
}

/** What Node runs of a chain. */
export function transpile (code: string): string {
  const { outputText } = ts.transpileModule(code, {
    compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext, verbatimModuleSyntax: true },
  })
  return outputText
}
