import { unescape } from 'node:querystring'

/** Names of options, and of a URL's parameters, that hold a secret. */
export const secretKey = /pass|pwd|secret|token|credential|authorization|^auth$|key$|^pfx$|^psk$/i
/** Beside a password there is a name, in `auth: { username, password }`: it is none. */
const publicKey = /^user(name)?$|^type$/i

/**
 * Every secret text of a pool's options, in each way in which an error may show it: what `scrub` takes out. The longest
 * first.
 *
 * Those are the passwords of URLs, wherever there is one, and all that is below a key such as `password`, `token` or
 * `key`. What a function returns can't be known.
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
      // Getters are left alone: reading one is not for us to do.
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
 * What no error of a pool may show, as of the moment when it is asked.
 *
 * @param connector its own secrets; one whose addresses change has others from time to time
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

/** Raw, decoded, encoded as a part of a URL, as a URL's password and as a form, and as JSON has it. */
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
 * By hand, since `new URL` refuses several hosts (MongoDB) and whatever else is wrong with a URL that gives an error.
 * Where it is not clear what the password is (with `@`, `/` or `?` in it, not encoded), every reading of it is taken.
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
 * A secret that is shorter is only taken out where it stands by itself: else it would take letters out of every word,
 * and so be told.
 */
const shortest = 4

/**
 * Matches any of the secrets, the longest that fits first; in one pass, so that what was put in is not looked at again.
 */
export function patternOf (secrets: readonly string[]): RegExp {
  return new RegExp(secrets.map((secret) => {
    const literal = secret.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&')
      // %2F and %2f are the same.
      .replace(/%[0-9a-f]{2}/gi, (code) => code.replace(/[a-f]/gi, bothCases))
    return secret.length < shortest ? `(?<![\\p{L}\\p{N}])${literal}(?![\\p{L}\\p{N}])` : literal
  }).join('|'), 'gu')
}
