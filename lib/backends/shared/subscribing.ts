// The arguments of `subscribe` and `listen`.
import type { Messages, MessagesOptions, SubscribeOptions, Unsubscribe } from '../../../types/messages.js'
import { badOption } from '../../engine/errors.js'
import { readObject, type Options } from '../../pool/schema.js'
import type { Listening, Topic } from './listening.js'
import { MessageQueue } from './messages.js'

const common = { onReconnect: {}, signal: {} }
const names = { subscribe: common, messages: { ...common, limit: {} } }

/** @throws `FST_POOL_BAD_OPTIONS` */
function check (call: keyof typeof names, given: unknown): MessagesOptions {
  if (given === undefined) return {}
  const options: Options = readObject(names[call], given, 'options')
  const { onReconnect, signal, limit } = options
  if (onReconnect !== undefined && typeof onReconnect !== 'function') {
    throw badOption('options.onReconnect', onReconnect, 'a function')
  }
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    throw badOption('options.signal', signal, 'an AbortSignal')
  }
  if (limit !== undefined && !(Number.isSafeInteger(limit) && (limit as number) >= 1)) {
    throw badOption('options.limit', limit, 'an integer of at least 1')
  }
  return options as MessagesOptions
}

type Given = ((...args: never[]) => unknown) | MessagesOptions | undefined

/**
 * With a function: subscribes, and resolves to what ends it. Without: an iterator.
 *
 * @param topic what the channel's name means. May throw
 * @param call calls the function with a message
 * @throws `FST_POOL_BAD_OPTIONS`; with a function, it rejects
 */
export function subscribe<M extends object> (
  listening: Listening<M>, topic: () => Topic, fn: Given, options: SubscribeOptions | undefined,
  call: (message: M) => unknown
): Promise<Unsubscribe> | Messages<M> {
  const isIterator = options === undefined && (fn === undefined || (typeof fn === 'object' && fn !== null))
  return isIterator ? iterate(listening, topic(), fn) : listen(listening, topic, fn, options, call)
}

async function listen<M> (
  listening: Listening<M>, topic: () => Topic, fn: unknown, given: unknown, call: (message: M) => unknown
): Promise<Unsubscribe> {
  const told = topic()
  if (typeof fn !== 'function') throw badOption('fn', fn, 'a function')
  const options = check('subscribe', given)
  const { subscribed, stop } = listening.join(told, call, options)
  await subscribed
  return stop
}

function iterate<M extends object> (listening: Listening<M>, topic: Topic, given: Given): Messages<M> {
  const { limit = 1000, ...options } = check('messages', given)
  return new MessageQueue<M>(limit, (deliver, ended) => listening.join(topic, deliver, options, ended), (first) => {
    listening.dropped(topic, first)
  })
}
