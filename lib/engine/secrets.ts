import { unescape } from 'node:querystring'

/** Names of options, and of a URL's parameters, that hold a secret. */
export const secretKey = /pass|pwd|secret|token|credential|authorization|^auth$|key$|^pfx$|^psk$/i
/** Names below a secret one that hold no secret: the user in `auth: { username, password }`. */
const publicKey = /^user(name)?$|^type$/i

/**
 * Every secret text of a pool's options, in each form in which an error may show it, the longest first.
 *
 * Secrets are the passwords of URLs, wherever there is one, and all that is below a key such as `password`, `token` or
 * `key`. What a function returns is not known.
 */
export function secretsOf (options: { url?: unknown, connection?: unknown }): string[] {
  const found = new Set<string>()
  const add = (text: string) => {
    for (const form of formsOf(text)) if (form !== '') found.add(form)
  }
  const seen = { public: new Set<object>(), secret: new Set<object>() }
  const walk = (value: unknown, secret: boolean) => {
    if (typeof value === 'string') {
      if (secret) add(value)
      addFromUrl(value, add)
    } else if (typeof value === 'number' || typeof value === 'bigint') {
      if (secret) add(String(value))
    } else if (value instanceof Uint8Array) {
      if (secret) add(Buffer.from(value).toString())
    } else if (value instanceof URL) {
      walk(value.href, secret)
    } else if (typeof value === 'object' && value !== null) {
      const done = secret ? seen.secret : seen.public
      if (done.has(value)) return
      done.add(value)
      if (value instanceof Map) for (const [key, inner] of value) walk(inner, isSecret(String(key), secret))
      // Getters are not read: a getter of the user's object may have effects.
      for (const [key, property] of Object.entries(Object.getOwnPropertyDescriptors(value))) {
        if (key !== 'length' || !Array.isArray(value)) walk(property.value, isSecret(key, secret))
      }
    }
  }
  walk(options.url, false)
  walk(options.connection, false)
  return [...found].sort((a, b) => b.length - a.length)
}

/**
 * Returns what gives the secrets that no error of a pool may show, as of now.
 *
 * @param connector its secrets change where its addresses do
 */
export function secretsIn (
  { url, connection }: { url?: unknown, connection?: unknown }, connector: { readonly secrets?: readonly string[] }
): () => readonly string[] {
  let of: readonly string[] | undefined
  let secrets: readonly string[] | undefined
  return () => {
    if (secrets === undefined || of !== connector.secrets) {
      of = connector.secrets
      secrets = secretsOf({ url, connection: [connection, { secrets: of }] })
    }
    return secrets
  }
}

function isSecret (key: string, within: boolean): boolean {
  return secretKey.test(key) || (within && !publicKey.test(key))
}

/** The forms of a secret: raw, decoded, encoded as part of a URL, as a URL's password, as a form, and in JSON. */
function formsOf (text: string): string[] {
  // Lone surrogates have no encoded form: encodeURIComponent throws.
  const raw = Buffer.from(text).toString()
  const forms = [text, raw, JSON.stringify(raw).slice(1, -1)]
  for (const one of new Set([raw, unescape(raw)])) {
    const url = new URL('http://host')
    url.password = one
    const asForm = new URLSearchParams([['', one]]).toString().slice(1)
    forms.push(one, encodeURIComponent(one), encodeURI(one), url.password, asForm)
  }
  return forms
}

/**
 * Finds passwords in a URL. By hand, since `new URL` refuses several hosts (MongoDB) and malformed URLs, which are the
 * ones that lead to errors. Where `@`, `/` or `?` in the password are not encoded, every possible reading is taken.
 */
function addFromUrl (text: string, add: (secret: string) => void): void {
  if (!/^\s*file:/i.test(text)) {
    const rest = text.replace(/^\s*[a-z][a-z0-9+.-]*:\/+/i, '')
    const authority = rest.replace(/[?#].*$/s, '')
    for (const part of [authority.replace(/\/.*$/s, ''), authority, rest, ...authority.split(',')]) {
      const at = part.lastIndexOf('@')
      const colon = part.indexOf(':')
      if (colon >= 0 && at > colon) add(part.slice(colon + 1, at))
    }
  }
  for (const [, key, value] of text.matchAll(/[?&;]([^=&;#]+)=([^&;#]+)/g)) {
    if (secretKey.test(unescape(key!))) add(value!)
    else {
      // authMechanismProperties=NAME:value,NAME:value
      for (const [, name, inner] of unescape(value!).matchAll(/(\w+):([^,]+)/g)) {
        if (secretKey.test(name!)) add(inner!)
      }
    }
  }
}

const bothCases = (digit: string) => `[${digit.toLowerCase()}${digit.toUpperCase()}]`

/**
 * A shorter secret is only replaced where it stands by itself. Else it would take letters out of every word, and could
 * be read from the gaps.
 */
const shortest = 4

/**
 * Matches any of the secrets, the longest first. One pattern for all, so that replacements are not searched again.
 */
export function patternOf (secrets: readonly string[]): RegExp {
  return new RegExp(secrets.map((secret) => {
    const literal = secret.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&')
      // %2F and %2f are the same.
      .replace(/%[0-9a-f]{2}/gi, (code) => code.replace(/[a-f]/gi, bothCases))
    return secret.length < shortest ? `(?<![\\p{L}\\p{N}])${literal}(?![\\p{L}\\p{N}])` : literal
  }).join('|'), 'gu')
}
