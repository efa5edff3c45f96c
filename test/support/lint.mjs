// ESLint rules of the tests' own.

const assertions = new Set(['ok', 'notOk', 'equal', 'not'])
const relations = new Set(['<', '<=', '>', '>='])
const isNode = (value) => typeof value?.type === 'string'
const isFunction = ({ type }) => /Function/.test(type)
const isCall = (node) => node.type === 'CallExpression' && node.callee.object?.name !== 'Math'
const isClock = (node) => node.type === 'CallExpression' &&
  /^(performance|Date)\.now$/.test(`${node.callee.object?.name}.${node.callee.property?.name}`)

/**
 * A node and all below it, except functions, which run at another time, and what others are called with: it is theirs
 * what they make of it.
 */
function * within (node, keys) {
  yield node
  if (isCall(node)) return
  for (const key of keys[node.type] ?? []) {
    for (const child of [node[key]].flat()) if (isNode(child) && !isFunction(child)) yield * within(child, keys)
  }
}

/**
 * No assertion on wall time: none that compares what a clock of the process says, by itself or as a variable, with a
 * constant. What is compared with something that was measured or counted too is fine.
 */
const noWallTime = {
  meta: {
    type: 'problem',
    messages: { wall: 'Wall time says more of the machine than of the code: show what comes first (test/support/order.ts), use the virtual clock, or print it in a comment that begins with "measured:".' },
  },
  create (context) {
    const { sourceCode } = context
    const below = (node) => [...within(node, sourceCode.visitorKeys)]
    const variableOf = (node) => {
      for (let scope = sourceCode.getScope(node); scope !== null; scope = scope.upper) {
        const variable = scope.set.get(node.name)
        if (variable !== undefined) return variable
      }
    }
    const initOf = (node) => node.type === 'Identifier' ? variableOf(node)?.defs[0]?.node.init : undefined
    const isMeasured = (node) => below(node)
      .some((one) => isClock(one) || (isNode(initOf(one)) && below(initOf(one)).some(isClock)))
    const isImported = (node) => variableOf(node)?.defs[0]?.type === 'ImportBinding'
    const isConstant = (node) => below(node).every((one) => one.type === 'Literal' || one.type === 'BinaryExpression' ||
      (one.type === 'Identifier' && (isImported(one) || (isNode(initOf(one)) && isConstant(initOf(one))))))
    return {
      CallExpression (call) {
        if (call.callee.type !== 'MemberExpression' || !assertions.has(call.callee.property.name) ||
          call.arguments.length === 0) return
        for (const node of below(call.arguments[0])) {
          if (node.type !== 'BinaryExpression' || !relations.has(node.operator)) continue
          const { left, right } = node
          if ((isMeasured(left) && isConstant(right)) ||
            (isConstant(left) && isMeasured(right))) context.report({ node, messageId: 'wall' })
        }
      },
    }
  },
}

export const rules = { 'no-wall-time': noWallTime }
