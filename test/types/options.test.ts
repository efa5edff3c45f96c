// The option types that are written by hand (types/) are what the schemas say: same names, same values.
import { expectTypeOf } from 'expect-type'
import t from 'tap'
import type { XStatic } from 'typebox/schema'
import type {
  backendSchema, balanceProperties, pluginProperties, policyProperties, poolProperties, targetProperties,
} from '../../lib/fastify/options.js'
import type { addressProperties, engineProperties, hookProperties } from '../../lib/pool/options.js'
import type { Address, BalanceOptions, EngineNumbers, PoolHooks } from '../../types/options.js'
import type {
  Backend, CommonPluginOptions, CommonPoolOptions, DriverOption, PartialPolicy, PoolOptions, RequestOptions, Target,
} from '../../types/plugin.js'

/** What may be given where these are the properties of a schema. */
type Given<P> = { -readonly [K in keyof P]?: Value<P[K]> | undefined }
type Value<S> = S extends { readonly anyOf: readonly [infer A, infer B] }
  ? Value<A> | Value<B>
  : S extends { readonly properties: infer P } ? Given<P> : XStatic<S>

/** A schema has no words for what a function takes and returns. */
type Functions = 'url' | 'connection' | 'key'

export function checkTypes (): void {
  expectTypeOf<Backend>().toEqualTypeOf<XStatic<typeof backendSchema>>()
  expectTypeOf<Flat<EngineNumbers>>().toEqualTypeOf<Given<Omit<typeof engineProperties,
    keyof typeof addressProperties>>>()
  expectTypeOf<Omit<Address, Functions>>().toEqualTypeOf<Given<Omit<typeof addressProperties, Functions>>>()
  expectTypeOf<keyof Address>().toEqualTypeOf<keyof typeof addressProperties>()
  expectTypeOf<keyof PoolHooks>().toEqualTypeOf<keyof typeof hookProperties>()
  expectTypeOf<PartialPolicy>().toEqualTypeOf<Given<typeof policyProperties>>()
  expectTypeOf<Flat<BalanceOptions & Pick<RequestOptions, 'stickyFor'>>>()
    .toEqualTypeOf<Given<Omit<typeof balanceProperties, 'sticky' | 'affinity' | 'discover'>>>()
  expectTypeOf<Pick<CommonPoolOptions, 'discover'>>()
    .toEqualTypeOf<Given<Pick<typeof balanceProperties, 'discover'>>>()
  type StickySchema = (typeof balanceProperties)['sticky']['properties']
  expectTypeOf<Omit<NonNullable<RequestOptions['sticky']>, Functions>>().toEqualTypeOf<Given<Omit<StickySchema,
    Functions>>>()
  expectTypeOf<keyof NonNullable<RequestOptions['sticky']>>().toEqualTypeOf<keyof StickySchema>()
  type BulkheadSchema = (typeof poolProperties)['bulkhead']['properties']
  expectTypeOf<keyof NonNullable<RequestOptions['bulkhead']>>().toEqualTypeOf<keyof BulkheadSchema>()
  expectTypeOf<NonNullable<RequestOptions['bulkhead']>['max']>().toEqualTypeOf<XStatic<BulkheadSchema['max']>>()
  type Elsewhere = Functions | keyof DriverOption | 'connector'
  expectTypeOf<Flat<Omit<Target, Elsewhere>>>().toEqualTypeOf<Given<Omit<typeof targetProperties, Elsewhere>>>()
  expectTypeOf<keyof Target>().toEqualTypeOf<keyof typeof targetProperties | 'connector'>()
  expectTypeOf<CommonPluginOptions>().toEqualTypeOf<Given<typeof pluginProperties>>()
  expectTypeOf<keyof CommonPoolOptions | 'backend' | 'connector' | 'targets'>()
    .toEqualTypeOf<keyof typeof poolProperties>()
  expectTypeOf<keyof PoolOptions>().toEqualTypeOf<keyof typeof poolProperties>()
}

type Flat<T> = { [K in keyof T]: T[K] }

t.test('types are checked by the compiler', async (t) => { t.type(checkTypes, 'function') })
