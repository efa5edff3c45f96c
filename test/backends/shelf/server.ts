import { once } from 'node:events'
import { createServer, type AddressInfo, type Socket } from 'node:net'
import { createInterface } from 'node:readline'
import type { Test } from 'tap'

interface Visitor {
  readonly id: number
  readonly socket: Socket
  user: string
  /** Who it does things as: AS. */
  as: string
  /** The room that its keys are in: USE. */
  room: string
}

/** A shelf: keys and values in rooms. Each line is answered by a line, in order. */
export async function startShelf (t: Test): Promise<{ readonly host: string, readonly port: number }> {
  const values = new Map<string, string>()
  const visitors = new Map<number, Visitor>()
  let ids = 0
  const answers: Record<string, (visitor: Visitor, ...words: string[]) => unknown> = {
    PING: () => 'PONG',
    ID: ({ id }) => id,
    LOGIN: (visitor, user) => { visitor.as = visitor.user = user! },
    AS: (visitor, user) => { visitor.as = user! },
    WHO: ({ as }) => as,
    USE: (visitor, room) => { visitor.room = room! },
    WHERE: ({ room }) => room,
    RESET: (visitor) => { visitor.room = 'hall' },
    SET: ({ room }, key, value) => { values.set(`${room}/${key}`, value!) },
    GET: ({ room }, key) => values.get(`${room}/${key}`) ?? '-',
    COUNT: (_, user) => [...visitors.values()].filter((one) => one.user === user).length,
    KILL: (_, id) => { visitors.get(Number(id))?.socket.destroy() },
    /** Answers after so many turns of the event loop; without a number never. */
    WAIT: async ({ socket }, turns) => {
      if (turns === undefined) await once(socket, 'close')
      for (let turn = 0; turn < Number(turns); turn++) await new Promise((resolve) => setImmediate(resolve))
    },
  }
  const server = createServer(async (socket) => {
    const visitor: Visitor = { id: ++ids, socket, user: '', as: '', room: 'hall' }
    visitors.set(visitor.id, visitor)
    socket.on('error', () => { socket.destroy() })
    socket.on('close', () => { visitors.delete(visitor.id) })
    for await (const line of createInterface({ input: socket })) {
      const [command = '', ...words] = line.split(' ')
      const answer = answers[command]
      const text = answer === undefined ? 'ERR what?' : await answer(visitor, ...words) ?? 'OK'
      if (socket.writable) socket.write(`${String(text)}\n`)
    }
  })
  await once(server.listen(0, '127.0.0.1'), 'listening')
  t.teardown(async () => {
    server.close()
    for (const { socket } of visitors.values()) socket.destroy()
    await once(server, 'close')
  })
  return { host: '127.0.0.1', port: (server.address() as AddressInfo).port }
}
