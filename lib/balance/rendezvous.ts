// Weighted rendezvous hashing: which of several servers a key belongs to. Each process finds the same one, whatever the
// servers' order; a server that leaves moves only its own keys. Nothing is kept of a key.

/** FNV-1a over the UTF-16 units, mixed so that texts which differ a little are far apart. */
export function hashOf (text: string): number {
  let hash = 0x811c9dc5
  for (let at = 0; at < text.length; at++) hash = Math.imul(hash ^ text.charCodeAt(at), 0x01000193)
  return mixed(hash)
}

/** The finalizer of MurmurHash3: each bit of the input changes half of the bits. */
function mixed (hash: number): number {
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b)
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35)
  return (hash ^ (hash >>> 16)) >>> 0
}

interface Server {
  readonly weight: number
  /** The hash of what names the server in all processes. */
  readonly hash: number
}

/** @param among at least one */
export function belongsTo<T extends Server> (key: string, among: readonly T[]): T {
  const hash = hashOf(key)
  let best = among[0]!
  let most = -Infinity
  for (const one of among) {
    // An evenly distributed number in (0, 1): the highest of u ** (1 / weight) wins as often as the weight says.
    const score = Math.log((mixed(hash ^ one.hash) + 0.5) / 2 ** 32) / one.weight
    if (score <= most) continue
    most = score
    best = one
  }
  return best
}
