// Values are checked without TypeBox, whose import takes longer than Fastify's: by the same rules.
import fc from 'fast-check'
import t from 'tap'
import { Check } from 'typebox/schema'
import { pluginOptionsSchema } from '../../lib/fastify/options.js'
import { connectorSchema } from '../../lib/pool/options.js'
import { isValid, type Schema } from '../../lib/pool/schema.js'

/** Every schema within a schema that is of a single value. */
function valuesIn (schema: Schema, found: Schema[] = []): Schema[] {
  const { properties, items, anyOf, additionalProperties } = schema
  const members = [...Object.values(properties ?? {}), ...items === undefined ? [] : [items], ...anyOf ?? []]
  if (typeof additionalProperties === 'object') members.push(additionalProperties)
  for (const member of members) valuesIn(member, found)
  if (members.length === 0) found.push(schema)
  return found
}

const schemas = [...valuesIn(pluginOptionsSchema), ...valuesIn(connectorSchema)]
const numbers = [-1, 0, 0.5, 1, 1.5, 65_535, 65_536, 2 ** 31 - 1, 2 ** 31, NaN, Infinity, -Infinity]
const words = schemas.flatMap(({ const: one, enum: some = [] }) => [one, ...some])
const value = fc.oneof(
  fc.constantFrom<unknown>(...numbers, ...words, null, undefined, [], {}, () => {}, class {}, Symbol('s'), 10n),
  fc.double(), fc.string(), fc.string({ unit: 'binary' }), fc.constantFrom('a', 'db-1', '1a', 'a b', '$_', 'höst', 'a@b', ''),
  fc.anything()
)

t.test('a single value is what TypeBox says that it is', async (t) => {
  t.ok(schemas.length > 100, `${schemas.length} schemas`)
  const seed = Number(process.env.SIM_SEED ?? Date.now() % 1e6)
  fc.assert(fc.property(fc.constantFrom(...schemas), value, (schema, given) => {
    return isValid(schema, given) === Check(schema, given)
  }), { seed, numRuns: 5000, verbose: true })
  for (const schema of schemas) {
    for (const given of [...numbers, ...words, 'text', '', true, null, [], {}]) {
      if (isValid(schema, given) !== Check(schema, given)) t.fail('differs', { schema, given })
    }
  }
})
