// What `execute` can call, worked out from the type of a pool's connections: structural types, which name no driver.

/** The arguments and the result of each overload of a function, up to the last twelve. */
type Overloads<F> = F extends {
  (...args: infer A1): infer R1,
  (...args: infer A2): infer R2,
  (...args: infer A3): infer R3,
  (...args: infer A4): infer R4,
  (...args: infer A5): infer R5,
  (...args: infer A6): infer R6,
  (...args: infer A7): infer R7,
  (...args: infer A8): infer R8,
  (...args: infer A9): infer R9,
  (...args: infer A10): infer R10,
  (...args: infer A11): infer R11,
  (...args: infer A12): infer R12,
}
  ? [A1, R1] | [A2, R2] | [A3, R3] | [A4, R4] | [A5, R5] | [A6, R6] | [A7, R7] | [A8, R8] | [A9, R9] | [A10, R10] |
    [A11, R11] | [A12, R12]
  : never

/** A result that lives on the connection: a cursor, a stream, an iterator, a statement, a batch. */
type Handle =
  { [Symbol.asyncIterator] (): unknown } | { pipe (...args: never[]): unknown } | { next (...args: never[]): unknown } |
  { execute (...args: never[]): unknown } | { exec (...args: never[]): unknown }

/** The overloads that answer with a promise of something that can outlive the loan. */
type Answering<O> = O extends readonly [infer A extends readonly unknown[], PromiseLike<infer R>]
  ? R extends Handle ? never : readonly [Known<A>, R]
  : never

/** An argument whose type only a type parameter of the driver's says, which is not known here, may be anything. */
type Known<A extends readonly unknown[]> = { [I in keyof A]: [A[I]] extends [undefined] ? any : A[I] }

type Answers<T> = { readonly [M in keyof T as [Answering<Overloads<T[M]>>] extends [never] ? never : M]:
  Answering<Overloads<T[M]>> }

/** SQLite: what the statements of a handle do, with the text in front. */
type Statements<S> = {
  readonly [M in 'get' | 'all' | 'run' as M extends keyof S ? M : never]:
  S[M & keyof S] extends (...args: never[]) => infer R
    ? readonly [[text: string, values?: readonly unknown[] | Readonly<Record<string, unknown>>], R]
    : never
}

/** MongoDB: what its collections do, with the name of one in front. */
type Collections<L> = { readonly [M in keyof Answers<L>]: Named<Answers<L>[M]> }
type Named<O> = O extends readonly [infer A extends readonly unknown[], infer R]
  ? readonly [[collection: string, ...args: A], R]
  : never

/** Whether nothing is known of the type. */
type IsUnknown<C> = unknown extends C ? true : false

/** The calls that `execute` can make on a connection, by name: pairs of arguments and result. */
export type CallsOf<C> = IsUnknown<C> extends true
  ? { readonly [method: string]: readonly [any[], unknown] }
  : C extends { collection (name: string): infer L }
    ? Collections<L>
    : C extends { prepare (text: string): infer S extends { get: unknown, all: unknown, run: unknown } }
      ? Statements<S>
      : Answers<C>

/** The name of a call of `execute`. */
export type CallName<C> = keyof CallsOf<C> & string

/** Its arguments. */
export type CallArguments<C, M extends CallName<C>> =
  CallsOf<C>[M] extends readonly [infer A extends unknown[], unknown] ? A : never

/** What the call with these arguments resolves to. */
export type CallResult<C, M extends CallName<C>, A extends readonly unknown[]> =
  [ResultOf<CallsOf<C>[M], A>] extends [never] ? unknown : ResultOf<CallsOf<C>[M], A>

/** Of the overloads that take these arguments. One whose result only a type parameter says is left out. */
type ResultOf<O, A> = O extends readonly [infer P, infer R]
  ? A extends P ? IsAny<R> extends true ? R : unknown extends R ? never : R : never
  : never
type IsAny<T> = 0 extends 1 & T ? true : false
