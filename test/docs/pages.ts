// The README and the pages of docs/ as the tests read them.
import { readFileSync, readdirSync } from 'node:fs'
import { dirname, join, posix } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = join(dirname(fileURLToPath(import.meta.url)), '../..')

/** A fenced block of code. */
export interface Block {
  /** From the repository's root. */
  readonly page: string
  /** The line of its first line of code, from 1. */
  readonly line: number
  /** The first word behind the fence. */
  readonly language: string
  /** The words behind that. */
  readonly marks: readonly string[]
  readonly code: string
  /** The comment `<!-- try ... -->` right behind it: what to do with what it defines. */
  readonly tries: readonly string[]
}

/** From the repository's root, the README first. */
export const pages: readonly string[] = ['README.md', ...readdirSync(join(root, 'docs'))
  .filter((name) => name.endsWith('.md')).sort().map((name) => `docs/${name}`)]

export const textOf = (page: string): string => readFileSync(join(root, page), 'utf8')

/** All pages of docs/ in one text. */
export const docs = (): string => pages.slice(1).map(textOf).join('\n')

const fenced = /^```([\w-]*)([^\n]*)\n([^]*?)^```$(?:\n+<!-- try\n([^]*?)\n-->)?/gm

export function blocksOf (page: string): Block[] {
  const text = textOf(page)
  return [...text.matchAll(fenced)].map(({ 1: language = '', 2: marks = '', 3: code = '', 4: tries, index }) => ({
    page,
    line: text.slice(0, index).split('\n').length + 1,
    language,
    marks: marks.trim().split(/\s+/).filter((word) => word !== ''),
    code,
    tries: tries?.split('\n') ?? [],
  }))
}

/** What all blocks of a page's TypeScript begin with, unseen: the comment `<!-- given ... -->`. */
export function givenOf (page: string): Pick<Block, 'page' | 'line' | 'code'> | undefined {
  const text = textOf(page)
  const found = /^<!-- given\n([^]*?)^-->$/m.exec(text)
  if (found === null) return undefined
  return { page, line: text.slice(0, found.index).split('\n').length + 1, code: found[1]! }
}

/** A page's text without its blocks of code. */
export const proseOf = (page: string): string => textOf(page).replace(/^```[^]*?^```$|^<!--[^]*?-->$/gm, '')

/** Each heading of a page, by the anchor that the usual renderers give it. */
export function headingsOf (page: string): Map<string, string> {
  const found = new Map<string, string>()
  for (const [, title = ''] of proseOf(page).matchAll(/^#+ (.*)$/gm)) {
    const plain = title.replace(/\[([^\]]*)\]\([^)]*\)/g, '$1')
    const anchor = plain.toLowerCase().replace(/[^\p{L}\p{N} _-]/gu, '').replaceAll(' ', '-')
    let free = anchor
    for (let n = 1; found.has(free); n++) free = `${anchor}-${n}`
    found.set(free, plain)
  }
  return found
}

/** A link of a page to a file of the repository. */
export interface Link { readonly as: string, readonly page: string, readonly anchor: string | undefined }

/** Links to other places, and those in code, are left out. */
export function linksOf (page: string): Link[] {
  const prose = proseOf(page).replace(/`[^`\n]*`/g, (code) => 'x'.repeat(code.length))
  const links = [...prose.matchAll(/\]\(([^)\s]+)\)/g)].map(([, link = '']) => link)
  return links.filter((link) => !/^[a-z]+:/.test(link)).map((as) => {
    const [path = '', anchor] = as.split('#')
    return { as, page: path === '' ? page : posix.join(posix.dirname(page), path), anchor }
  })
}
