import { createServer, connect } from 'node:net'
import type { AddressInfo, Socket } from 'node:net'
import t from 'tap'
import { startProxy } from './proxy.js'
import type { Teardown } from './services.js'
import { alarm } from './order.js'
import { until } from './until.js'

interface Talk {
  readonly socket: Socket
  heard: string
  closed: boolean
  ended: boolean
  error: NodeJS.ErrnoException | undefined
}

/** A server that says each thing back, and how many connections it has. */
async function startEcho (t: Teardown) {
  const sockets = new Set<Socket>()
  const server = createServer((socket) => {
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket))
    socket.on('error', () => socket.destroy()) // A reset, which is what these tests are about.
    socket.pipe(socket)
  }).listen(0, '127.0.0.1')
  await until(() => server.listening)
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return { host: '127.0.0.1', port: (server.address() as AddressInfo).port, sockets }
}

function talk (t: Teardown, { host, port }: { host: string, port: number }): Talk {
  const socket = connect({ host, port })
  const me: Talk = { socket, heard: '', closed: false, ended: false, error: undefined }
  socket.setEncoding('utf8')
  socket.on('data', (text) => { me.heard += text })
  socket.on('end', () => { me.ended = true })
  socket.on('error', (error) => { me.error = error })
  socket.on('close', () => { me.closed = true })
  t.teardown(() => socket.destroy())
  return me
}

async function both (t: Teardown) {
  const echo = await startEcho(t)
  return { echo, proxy: await startProxy(t, echo) }
}

async function said (me: Talk, text: string): Promise<void> {
  const before = me.heard
  me.socket.write(text)
  await until(() => me.heard === before + text, { what: `the echo of ${text}` })
}

t.test('passes everything, and counts connections', async (t) => {
  const { echo, proxy } = await both(t)
  const one = talk(t, proxy)
  const two = talk(t, proxy)
  await said(one, 'a')
  await said(two, 'x'.repeat(300_000))
  t.same(proxy.connections, { open: 2, peak: 2, total: 2 })
  one.socket.end()
  await until(() => one.closed && proxy.connections.open === 1)
  await until(() => echo.sockets.size === 1)
  await said(talk(t, proxy), 'c')
  t.same(proxy.connections, { open: 2, peak: 2, total: 3 })
})

t.test('latency delays each direction and keeps the order when it changes', async (t) => {
  const { proxy } = await both(t)
  const me = talk(t, proxy)
  await said(me, 'a')
  proxy.latency(60)
  const almost = alarm(118)
  await said(me, 'b')
  t.ok(almost.rang)
  me.socket.write('1')
  let turns = 0
  await until(() => turns++ > 10, { what: 'the proxy has heard it' })
  await proxy.heal()
  me.socket.write('2')
  await until(() => me.heard.length === 4)
  t.equal(me.heard, 'ab12')
})

t.test('a black hole swallows both directions and keeps sockets open', async (t) => {
  const { echo, proxy } = await both(t)
  const me = talk(t, proxy)
  await said(me, 'a')
  proxy.blackHole()
  me.socket.write('lost')
  for (const socket of echo.sockets) socket.write('lost too')
  const other = talk(t, proxy)
  await until(() => echo.sockets.size === 2)
  await proxy.heal()
  await said(other, 'b')
  await said(me, 'c')
  t.equal(me.heard, 'ac')
  t.notOk(me.closed)
})

t.test('what died in a black hole is reset when it is used again', async (t) => {
  const { echo, proxy } = await both(t)
  const me = talk(t, proxy)
  await said(me, 'a')
  proxy.blackHole()
  for (const socket of echo.sockets) socket.destroy()
  await until(() => echo.sockets.size === 0)
  await proxy.heal()
  me.socket.write('b')
  await until(() => me.closed)
  t.equal(me.heard, 'a')
})

t.test('silence accepts new connections and tells them nothing; open ones go on', async (t) => {
  const { echo, proxy } = await both(t)
  const old = talk(t, proxy)
  await said(old, 'a')
  proxy.silence()
  const me = talk(t, proxy)
  me.socket.write('hello?')
  await until(() => proxy.connections.open === 2)
  await said(old, 'b')
  t.equal(me.heard, '')
  t.notOk(me.closed)
  t.equal(echo.sockets.size, 1, 'the server never hears of it')
  me.socket.end()
  await until(() => me.closed, { what: 'it can be closed' })
})

t.test('resetOnConnect resets new connections only', async (t) => {
  const { proxy } = await both(t)
  const old = talk(t, proxy)
  await said(old, 'a')
  proxy.resetOnConnect()
  const me = talk(t, proxy)
  await until(() => me.closed)
  t.equal(me.error?.code, 'ECONNRESET')
  await said(old, 'b')
})

t.test('resetAll resets what is open; a new connection works', async (t) => {
  const { echo, proxy } = await both(t)
  const me = talk(t, proxy)
  await said(me, 'a')
  proxy.resetAll()
  await until(() => me.closed)
  t.equal(me.error?.code, 'ECONNRESET')
  await until(() => echo.sockets.size === 0, { what: 'the server loses it too' })
  await said(talk(t, proxy), 'b')
})

t.test('endAll ends what is open in good order', async (t) => {
  const { echo, proxy } = await both(t)
  const me = talk(t, proxy)
  await said(me, 'a')
  proxy.endAll()
  await until(() => me.closed && echo.sockets.size === 0)
  t.ok(me.ended)
  t.equal(me.error, undefined)
})

t.test('refuse closes the port, keeps what is open, and heal opens the same port', async (t) => {
  const { proxy } = await both(t)
  const { port } = proxy
  const old = talk(t, proxy)
  await said(old, 'a')
  await proxy.refuse()
  const me = talk(t, proxy)
  await until(() => me.closed)
  t.equal(me.error?.code, 'ECONNREFUSED')
  await said(old, 'b')
  await proxy.heal()
  t.equal(proxy.port, port)
  await said(talk(t, proxy), 'c')
})

t.test('cutAfter lets so many bytes pass, then resets', async (t) => {
  const { proxy } = await both(t)
  const me = talk(t, proxy)
  await said(me, 'a')
  proxy.cutAfter(3)
  me.socket.write('12345')
  await until(() => me.closed)
  t.equal(me.heard, 'a123')
  await proxy.heal()
  await said(talk(t, proxy), 'whole')
})

t.test('cutAfter 0 resets at the first answer', async (t) => {
  const { proxy } = await both(t)
  const me = talk(t, proxy)
  await said(me, 'a')
  proxy.cutAfter(0)
  me.socket.write('12345')
  await until(() => me.closed)
  t.equal(me.heard, 'a')
  t.equal(me.error?.code, 'ECONNRESET')
})

t.test('a target that is not there resets the client', async (t) => {
  const echo = await startEcho(t)
  const gone = await startProxy(t, echo)
  await gone.refuse()
  const proxy = await startProxy(t, gone)
  const me = talk(t, proxy)
  await until(() => me.closed)
  t.equal(me.error?.code, 'ECONNRESET')
})

t.test('nothing is left when the test that started it ends', async (t) => {
  let port = 0
  let me: Talk | undefined
  const outer = t
  await t.test('inside', async (t) => {
    const { proxy } = await both(t)
    port = proxy.port
    me = talk(outer, proxy)
    await said(me, 'a')
  })
  await until(() => me?.closed)
  const late = talk(t, { host: '127.0.0.1', port })
  await until(() => late.closed)
  t.equal(late.error?.code, 'ECONNREFUSED')
})
