import {
  AggregationTemporality, InMemoryMetricExporter, MeterProvider, PeriodicExportingMetricReader, type DataPoint,
} from '@opentelemetry/sdk-metrics'
import Fastify, { type FastifyInstance } from 'fastify'
import { Registry } from 'prom-client'
import type { Test } from 'tap'
import fastifyPool, { type PluginOptions } from '../../index.js'
import { logLines } from '../support/app.js'
import { until } from '../support/until.js'

// An incident as those see it who are called at night: the log that a production app writes, and the numbers that wake
// somebody, as OpenTelemetry exports them and as Prometheus reads them.

export interface Held {
  readonly route: string
  readonly connections: number
  readonly longest: number
  readonly id?: string
  readonly doing?: string
  readonly serverId?: string | number
}

export interface Line extends Record<string, unknown> {
  readonly level: number
  /** In ms since 1970. */
  readonly time: number
  readonly msg: string
  readonly event?: string
  readonly held?: readonly Held[]
}

/** A number, with the attributes that OpenTelemetry has and the labels that Prometheus has. */
export type Metric = readonly [otel: string, prometheus: string, labels?: Readonly<Record<string, string>>]

const warn = 40
const info = 30
/** The codes of requests that were refused, or waited in vain. */
const refusals = /^FST_POOL_(?:ACQUIRE_TIMEOUT|CONNECT_FAILED|CIRCUIT_OPEN|QUEUE_FULL|OVERLOADED|CLOSED)$/
/** How many lines one pool may write in 10 s. */
const most = 12

export class Incident {
  readonly app: FastifyInstance
  readonly lines: Line[]
  readonly #exporter = new InMemoryMetricExporter(AggregationTemporality.CUMULATIVE)
  readonly #provider = new MeterProvider({
    readers: [new PeriodicExportingMetricReader({ exporter: this.#exporter, exportIntervalMillis: 2 ** 31 - 1 })],
  })

  readonly #registry = new Registry()

  private constructor () {
    const { stream, lines } = logLines<Line>()
    this.lines = lines
    this.app = Fastify({ logger: { level: 'info', stream } }) as unknown as FastifyInstance
  }

  /** An app with its production log and both kinds of metrics; its last lines are looked at when the test ends. */
  static async stage (
    t: Test, options: Partial<PluginOptions>, routes: (app: FastifyInstance) => void = () => {}
  ): Promise<Incident> {
    const incident = new Incident()
    const { app } = incident
    t.teardown(async () => {
      incident.show(t)
      await app.close()
      await incident.#provider.shutdown()
    })
    await app.register(fastifyPool, {
      ...options,
      otel: { meter: incident.#provider.getMeter('incident') },
      prometheus: { register: incident.#registry },
    } as PluginOptions)
    routes(app)
    await app.ready()
    return incident
  }

  /** All that the plugin wrote. */
  get ours (): Line[] {
    return this.lines.filter(({ event }) => event !== undefined)
  }

  /** The first three lines of the plugin's at warn or above: what is read first, by whoever is called. */
  get first (): Line[] {
    return this.ours.filter(({ level }) => level >= warn).slice(0, 3)
  }

  named (event: string): Line[] {
    return this.lines.filter((line) => line.event === event)
  }

  /** The line, when it is written. */
  async told (event: string, where: (line: Line) => boolean = () => true): Promise<Line> {
    return await until(() => this.named(event).find(where), { what: `the line ${event}` })
  }

  /** The line of that name among the first three; the test fails where it is not one of them. */
  async among (t: Test, event: string, where: (line: Line) => boolean = () => true): Promise<Line> {
    const line = await this.told(event, where)
    t.ok(this.first.includes(line), `${event} is within the first three lines: ${this.first.map((one) => one.event)}`)
    return line
  }

  /** What both kinds of metrics have is as an alert would ask. */
  async alert (t: Test, [otel, prometheus, labels = {}]: Metric, asked: (value: number) => boolean, pool = 'db') {
    const [one, other] = [await this.otel(otel, pool, labels), await this.prometheus(prometheus, pool, labels)]
    const what = `${asked}`.replace('(value) => ', '')
    const which = JSON.stringify(labels)
    t.ok(one !== undefined && asked(one), `OpenTelemetry: ${otel} ${which} is ${one}: ${what}`)
    t.ok(other !== undefined && asked(other), `Prometheus: ${prometheus} ${which} is ${other}: ${what}`)
  }

  /** What both kinds of metrics have together; 0: neither has it. */
  async alertOf ([otel, prometheus, labels = {}]: Metric, pool = 'db'): Promise<number> {
    return (await this.otel(otel, pool, labels) ?? 0) + (await this.prometheus(prometheus, pool, labels) ?? 0)
  }

  /** The value of one series; of a histogram its count. */
  async otel (name: string, pool: string, labels: Readonly<Record<string, string>> = {}): Promise<number | undefined> {
    this.#exporter.reset()
    await this.#provider.forceFlush()
    const scopes = this.#exporter.getMetrics().flatMap(({ scopeMetrics }) => scopeMetrics)
    const all = scopes.flatMap(({ metrics }) => metrics)
    const points = all.filter(({ descriptor }) => descriptor.name === name).flatMap(({ dataPoints }) =>
      dataPoints as Array<DataPoint<unknown>>)
    const wanted = Object.entries({ 'db.client.connection.pool.name': pool, ...labels })
    const found = points.find(({ attributes }) => wanted.every(([key, text]) => attributes[key] === text))
    const value = found?.value as number | { readonly count: number } | undefined
    return typeof value === 'object' ? value.count : value
  }

  async prometheus (
    name: string, pool: string, labels: Readonly<Record<string, string>> = {}
  ): Promise<number | undefined> {
    const plain = (key: string) => key.replace('db.client.connection.', '').replaceAll('.', '_')
    const wanted = [`pool="${pool}"`, ...Object.entries(labels).map(([key, text]) => `${plain(key)}="${text}"`)]
    for (const line of (await this.#registry.metrics()).split('\n')) {
      const [, is, all = '', value] = /^(\w+)\{(.*)\} (\S+)$/.exec(line) ?? []
      if (is === name && wanted.every((label) => all.split(/,(?=\w+=)/).includes(label))) return Number(value)
    }
    return undefined
  }

  /** No 10 s had more lines of ours at info or above than may be, and no refused request had one. */
  volumes (t: Test): void {
    const times = this.ours.filter(({ level }) => level >= info).map(({ time }) => time)
    const worst = Math.max(0, ...times.map((from) => times.filter((at) => at >= from && at < from + 10_000).length))
    t.ok(worst <= most, `at most ${worst} lines of ours in 10 s`)
    const refused = this.lines.filter(({ event, err }) => event !== undefined &&
      refusals.test(String((err as { code?: string } | undefined)?.code)))
    t.same(refused, [], 'no line of ours is of a refused request')
  }

  /** Statuses of so many requests at once. */
  async ask (url: string, times = 1, headers: Record<string, string> = {}): Promise<number[]> {
    const asked = Array.from({ length: times }, () => this.app.inject({ url, headers }))
    return (await Promise.all(asked)).map(({ statusCode }) => statusCode)
  }

  /** So many requests have a connection. */
  async holders (times: number): Promise<void> {
    await until(() => requestsThatHold(this.app).length === times, { what: `${times} requests that have a connection` })
  }

  /** For whoever reads the test's output. */
  show (t: Test): void {
    if (process.env.SHOW === undefined) return
    for (const { hostname: _, pid, err, ...line } of this.ours) t.comment(JSON.stringify(line))
  }
}

/** Without the pool's own question at its start. */
export function requestsThatHold (app: FastifyInstance) {
  return app.pools.holders().filter(({ holder }) => typeof holder === 'object')
}

/** When something began, as a field says: a time, within the test. */
export function isSince (value: unknown): boolean {
  const at = Date.parse(String(value))
  return at <= Date.now() && at > Date.now() - 120_000
}

/** What is waited for by a handler, and let go by the test, or at its end. */
export function hold (t: Test): { readonly held: Promise<void>, letGo (): void } {
  let letGo = () => {}
  const held = new Promise<void>((resolve) => { letGo = resolve })
  t.teardown(() => { letGo() })
  return { held, letGo }
}
