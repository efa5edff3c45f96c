// A stand-in for a connection: all that it has is the connection's own, but for what it is told to answer itself.

/** What a stand-in answers itself. */
export interface Answers {
  /** Why the connection is dead: then each method throws this. */
  dead: Error | undefined
  /** Methods instead of the connection's. */
  readonly own?: Readonly<Record<string, (...args: never[]) => unknown>>
}

/**
 * Methods are called on the connection itself: drivers keep their state in it, and some of it can't be reached through
 * a proxy. The target of the proxy is another object, so that what the driver has fixed on the connection may differ.
 */
export function viewOf<C extends object> (connection: C, answers: Answers): C {
  const bound = new Map<unknown, unknown>()
  const bind = (method: (...args: unknown[]) => unknown): unknown => {
    const known = bound.get(method)
    if (known !== undefined) return known
    const call = (...args: unknown[]): unknown => {
      if (answers.dead !== undefined) throw answers.dead
      return method.apply(connection, args)
    }
    bound.set(method, call)
    return call
  }
  // A callable one (Knex) has a target that can be called.
  const target: unknown = typeof connection === 'function'
    ? () => {}
    : Object.create(Object.getPrototypeOf(connection) as object | null)
  return new Proxy(target as C, {
    apply: (_target, self, args) => {
      if (answers.dead !== undefined) throw answers.dead
      return Reflect.apply(connection as (...args: unknown[]) => unknown, self, args) as unknown
    },
    getPrototypeOf: () => Reflect.getPrototypeOf(connection),
    get: (_target, key) => {
      const own = typeof key === 'string' && answers.own !== undefined && Object.hasOwn(answers.own, key)
        ? answers.own[key]
        : undefined
      const value: unknown = own ?? Reflect.get(connection, key, connection)
      return typeof value === 'function' && key !== 'constructor' ? bind(value as never) : value
    },
    set: (_target, key, value) => Reflect.set(connection, key, value, connection),
    has: (_target, key) => Reflect.has(connection, key),
    ownKeys: () => Reflect.ownKeys(connection),
    getOwnPropertyDescriptor: (_target, key) => {
      const own = Reflect.getOwnPropertyDescriptor(connection, key)
      return own && { ...own, configurable: true }
    },
    deleteProperty: (_target, key) => Reflect.deleteProperty(connection, key),
  })
}

/** What comes out of a connection that died, where there is no driver to say so. */
export function deadError (): Error {
  return Object.assign(new Error('the connection died (faults of fastify-pool/testing)'), { code: 'ECONNRESET' })
}
