export type Method = (...args: unknown[]) => unknown

/** A method of an object, to be called alone; undefined: it has none of that name, or any object has it. */
export function methodOf (object: unknown, name: string): Method | undefined {
  const found = (object as Readonly<Record<string, unknown>> | null | undefined)?.[name]
  return typeof found === 'function' && !(name in Object.prototype) ? (found as Method).bind(object) : undefined
}
