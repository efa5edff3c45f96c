import type { Activity, Capacity, ServerState, Transaction, TransactionOptions } from '../../../types/connector.js'
import type { Connection } from '../../../types/drivers.js'
import type { Failure } from '../shared/failures.js'
import { Properties } from '../shared/properties.js'
import { ServerSession, type ResetMode } from '../shared/session.js'
import { quote } from '../shared/sql.js'
import { LastAnswer } from './answer.js'
import { capacityOf } from './capacity.js'
import { Commands, textOf } from './commands.js'
import { errors, isReadOnly } from './errors.js'
import { Inspection } from './inspect.js'
import { victimOf, type Killer, type Victim } from './killer.js'
import { begin, rollback, setMark, type Open, type TransactionSite } from './transaction.js'
import { cut, isOpen, type Command, type Core, type Packet } from './wire.js'

/** Of the client's flags. */
const multiStatements = 0x10000

/**
 * Statements that can end no transaction, and change neither role nor database. Their first word decides: a single
 * statement has nothing else behind it. Any other spelling counts as more than it is.
 */
const plain = /^\s*(?:select|insert|update|delete|replace|with)\b/i
/**
 * Statements that can change neither role nor database; those of `bounds` only where nothing else is in the text. No
 * part of a text can be matched in two ways: trying all of them would take minutes for a long text.
 */
const harmless = /^\s*(?:select|insert|update|delete|replace|with|savepoint|show)\b/i
const bounds = /^\s*(?:start\s+transaction|begin|commit|rollback)\s*(?:;\s*)?$/i
/**
 * Statements, of those that are not harmless, that may make transactions read only: by their own words, or in a
 * routine.
 */
const mayOnlyRead = /only|call|execute/i

const state = 'SELECT DATABASE(), CURRENT_ROLE()'

/** The states of an XA transaction that COM_RESET_CONNECTION undoes, as an error names them in any language. */
const resettable = /\b(?:ACTIVE|IDLE|ROLLBACK ONLY)\b/

/** How long the server may take to end a healthy connection, in ms: until then the connection counts against `max`. */
const quitGrace = 1000

/** Watches what goes through one connection, and knows how to undo it. */
export class MysqlSession extends ServerSession<Connection> implements TransactionSite {
  readonly core: Core
  readonly commands: Commands
  readonly answer = new LastAnswer()
  readonly several: boolean
  open: Open | undefined
  readonly #mode: ResetMode
  readonly #inspection: Inspection
  /** The driver's configuration, which a borrower may change, and a copy from before. */
  readonly #config: Record<string, unknown>
  readonly #before: Record<string, unknown>
  readonly #encoding: string
  /** Of the connection. From the first loan on. */
  #properties: Properties | undefined
  /** How many commands others have sent. */
  #sent = 0
  /** How many of them were sent when the connection was clean. */
  #clean = 0
  /** `onConnect` has run: what is sent from now on is a borrower's. */
  #settled = false
  /** A command may have changed role or database. */
  #suspect = false
  /** A command may have asked for transactions that only read. */
  #onlyReads = false
  /** The connection is in a state that no reset of this mode undoes. */
  #spoilt = false
  /** The server has refused to execute a prepared statement: others may be out of date too. */
  #outdated = false
  /**
   * What the first borrower found. `names`: the statement that sets the character set, where a reset undoes the
   * connection's own.
   */
  #first = { database: null as string | null, role: null as string | null, names: '' }
  /** By what the server knows it. */
  readonly #victim: Victim
  readonly #killer: Killer
  /** The server has let go of it. */
  #let = false
  /** It was cut off, and not by the server, while a command was under way. */
  #left = false
  /** Called when it is closed. */
  onEnd: () => void = () => {}

  constructor (connection: Connection, core: Core, mode: ResetMode, killer: Killer) {
    super(connection, [connection, core])
    this.core = core
    this.commands = new Commands(core)
    this.several = (core.config.clientFlags & multiStatements) !== 0
    this.#mode = mode
    this.#inspection = new Inspection(this.commands)
    this.#config = core.config
    this.#before = { ...core.config }
    this.#encoding = core.clientEncoding
    this.#victim = victimOf(core)
    this.#killer = killer
    // Before the driver's own listeners, which take the commands away.
    core.stream.prependListener('end', () => { this.#let = true })
    core.stream.prependListener('close', () => { this.#left = this.#runs })
    const ended = () => {
      // The socket closes before the driver reports it, under this code.
      this.error ??= Object.assign(new Error('the server closed the connection'), { code: 'PROTOCOL_CONNECTION_LOST' })
      this.die()
    }
    this.listeners.keep(core, 'error', (error: Error) => {
      this.error = error
      this.die()
    })
    this.listeners.keep(core, 'end', ended)
    core.stream.on('close', ended)
    this.#hide()
  }

  /** Brings the connection into the state that its first borrower is to find. From then on it may be lent. */
  async prepare (): Promise<void> {
    if (this.#mode === 'session') {
      const { commands } = this
      const charset = 'SELECT @@character_set_client, @@collation_connection'
      const before = await commands.row(charset)
      await commands.reset()
      const after = await commands.row(charset)
      // A reset goes back to the server's own character set, says MySQL's documentation.
      const names = `SET NAMES ${String(before[0])} COLLATE ${String(before[1])}`
      if (before.join() !== after.join()) this.#first.names = names
      await this.#setNames()
      const [database, role] = await commands.row(state)
      this.#first = { ...this.#first, database: textOrNull(database), role: textOrNull(role) }
    }
    if (this.#mode !== 'none') this.listeners.follow()
  }

  override get socket (): Core['stream'] {
    return this.core.stream
  }

  override get broken (): boolean {
    return this.dead || !isOpen(this.core)
  }

  override unfit (): boolean {
    if (!this.#settled) {
      this.#settled = true
      if (this.#mode === 'session') this.#properties = new Properties(this.connection)
      this.#clean = this.#sent
    }
    this.#forgetStatements()
    return this.broken || this.#spoilt
  }

  override describe (): Activity {
    const { core, commands, answer } = this
    const within = this.open !== undefined || answer.isWithin
    return { id: core.threadId, doing: commands.busy ? 'query' : within ? 'idle in transaction' : 'idle' }
  }

  /** The server is at work on a command. */
  get #runs (): boolean {
    return !this.#let && this.commands.busy
  }

  /** Nothing is under way on it, and its borrower, if there is one, has sent nothing yet. */
  get rests (): boolean {
    const isClean = this.#mode === 'none' || this.#sent === this.#clean
    return isClean && this.#settled && !this.broken && !this.commands.busy && !this.answer.isWithin
  }

  override async ping (): Promise<boolean> {
    await this.commands.ping()
    return true
  }

  override async inspect (): Promise<ServerState> {
    return await this.#inspection.state()
  }

  override async capacity (): Promise<Capacity | undefined> {
    return await capacityOf(this.commands, this.core.threadId)
  }

  begin (options: TransactionOptions): Promise<Transaction<Connection>> {
    return begin(this, options)
  }

  protected override async close (): Promise<void> {
    const { core } = this
    this.onEnd()
    if (this.broken || this.commands.busy) {
      const left = this.#left || this.#runs
      await cut(core)
      if (left) await this.#killer.end(this.#victim)
      return
    }
    const timer = setTimeout(() => core.stream.destroy(), quitGrace)
    try {
      await new Promise<void>((resolve) => {
        core.stream.once('close', () => resolve())
        this.commands.quit()
        // Unread data would keep the server's end from being seen.
        core.stream.resume()
      })
    } finally {
      clearTimeout(timer)
    }
  }

  protected override drop (): void {
    this.core.stream.destroy()
  }

  // --- Reset ---------------------------------------------------------------------------------------------------------

  /** undefined: there is nothing to undo. */
  undo (): Promise<void> | undefined {
    if (this.#mode === 'none') return undefined
    this.listeners.restore()
    if (this.#properties?.changed === true) this.#properties.restore()
    const { busy } = this.commands
    if (!busy && this.#sent === this.#clean) {
      if (this.#mode === 'session' && !this.#asBefore) this.#restoreConfig()
      return undefined
    }
    if (this.#mode === 'session') return this.#undoAll()
    if (!busy && this.answer.idle) {
      this.#clean = this.#sent
      return undefined
    }
    const sent = this.#sent
    return this.#rollBack(() => this.answer.idle).then(() => this.#cleaned(sent))
  }

  /** @param isOver called when its turn has come: true where there is nothing to roll back */
  async #rollBack (isOver: () => boolean): Promise<void> {
    await this.commands.run([() => isOver() ? undefined : rollback]).catch((cause: unknown) => {
      const { errno, message } = cause as Failure
      if (errno !== errors.xaState) throw cause
      if (this.#mode === 'session' && resettable.test(String(message))) return
      throw new Error('the connection was left with an XA transaction, which can not be undone', { cause })
    })
  }

  async #undoAll (): Promise<void> {
    const sent = this.#sent
    // COM_RESET_CONNECTION fails in an XA transaction. After the reset of one that is prepared, MariaDB (10.11) would
    // refuse all writes.
    await this.#rollBack(() => this.answer.inTransaction === false)
    await this.commands.reset()
    for (const name of ['user', 'password', 'passwordSha1', 'database']) {
      if (this.#config[name] !== this.#before[name]) {
        throw new Error('the connection was left with another user or database by changeUser')
      }
    }
    // Undoes what the driver learned from SET NAMES, which the server has forgotten, and what a borrower wrote into it.
    this.#restoreConfig()
    this.core.clientEncoding = this.#encoding
    await this.#setNames()
    if (this.#suspect) await this.#restore()
    this.#suspect = false
    this.#onlyReads = false
    this.#cleaned(sent)
  }

  /** Whether the driver's configuration is as it was: a borrower may have set `typeCast`, say. */
  get #asBefore (): boolean {
    for (const name in this.#before) if (this.#config[name] !== this.#before[name]) return false
    for (const name in this.#config) if (!(name in this.#before)) return false
    return true
  }

  #restoreConfig (): void {
    Object.assign(this.#config, this.#before)
    for (const name of Object.keys(this.#config)) if (!(name in this.#before)) delete this.#config[name]
  }

  async #setNames (): Promise<void> {
    if (this.#first.names !== '') await this.commands.run([this.#first.names])
  }

  /**
   * Restores role and database, which COM_RESET_CONNECTION does not (MariaDB: the role). Fails where the configured
   * database is gone.
   */
  async #restore (): Promise<void> {
    const { commands } = this
    const { database, role } = this.#first
    const isBack = async () => {
      const [nowDatabase, nowRole] = await commands.row(state)
      return { database: textOrNull(nowDatabase) === database, role: textOrNull(nowRole) === role }
    }
    const now = await isBack()
    if (now.database && now.role) return
    if (database === null && !now.database) {
      // Only COM_CHANGE_USER leaves a database without entering another one.
      await commands.changeUser()
      await commands.reset()
      await this.#setNames()
    }
    const steps = []
    if (database !== null && !now.database) steps.push(`USE ${quote(database, '`')}`)
    // MySQL gives roles in the form that SET ROLE takes, MariaDB as bare names.
    const asItIs = role === 'NONE' || role?.includes('@') === true
    if (!now.role) steps.push(`SET ROLE ${role === null ? 'NONE' : asItIs ? role : quote(role, '`')}`)
    await commands.run(steps)
    const then = await isBack()
    if (!then.database || !then.role) {
      throw new Error('the connection was left with another role or database, which can not be undone')
    }
  }

  #cleaned (sent: number): void {
    if (this.#sent !== sent || this.commands.busy) throw new Error('the connection was still used while it was reset')
    this.#clean = sent
    this.#settled = false
  }

  // --- What goes through ---------------------------------------------------------------------------------------------

  /** Puts own properties over the driver's methods: they look, and call the method. */
  #hide (): void {
    const { core } = this
    const { addCommand, handlePacket } = core
    core.addCommand = (command) => {
      if (!this.commands.ours) this.#note(command)
      return addCommand.call(core, command)
    }
    core.handlePacket = (packet) => {
      const command = core._command
      // Before the driver handles the packet, since it may then send the next command.
      if (packet && command && !core._paused) {
        this.answer.take(packet, command)
        if (packet.buffer[packet.offset] === 0xff) this.#refused(packet, command)
      }
      handlePacket.call(core, packet)
    }
  }

  #note (command: Command): void {
    const text = textOf(command)
    // The driver sends COM_STMT_CLOSE by itself. It has no answer, and leaves nothing.
    if (text === undefined && command.id !== undefined) return
    this.#sent++
    const single = text !== undefined && !(this.several && text.includes(';'))
    if (!single || !(harmless.test(text) || bounds.test(text))) {
      this.#suspect = true
      if (text === undefined || mayOnlyRead.test(text)) this.#onlyReads = true
    }
    const { open } = this
    if (open === undefined || open.marked || (single && plain.test(text))) return
    open.marked = true
    this.commands.run([setMark]).catch(() => {
      // Without the savepoint the commit fails, as it should.
    })
  }

  /** The server has answered a command with an error. */
  #refused ({ buffer, offset, end }: Packet, { statement }: Command): void {
    const errno = buffer.readUInt16LE(offset + 1)
    if (errno === errors.illegalHandler || (errno === errors.xaState && this.#mode === 'none')) this.#spoilt = true
    if (errno === errors.unknownStatement || errno === errors.needsReprepare) this.#forget(statement)
    if (errno === errors.readOnlyTransaction) this.misplaced ||= !this.#onlyReads && this.open?.readOnly !== true
    else if (isReadOnly(errno, () => buffer.toString('latin1', offset + 3, end))) this.misplaced = true
  }

  /** Closes prepared statements that may be out of date. That has no answer, so there is nothing to wait for. */
  #forgetStatements (): void {
    if (!this.#outdated) return
    this.#outdated = false
    // A session reset closes them by itself.
    if (this.#mode !== 'session') this.core._statements.clear()
  }

  /**
   * A prepared statement can't be executed any more. The driver forgets it at once, and all others when the borrower,
   * who may hold them, has gone. One that was made by SQL PREPARE only a session reset undoes.
   */
  #forget (statement: Command['statement']): void {
    this.#outdated = true
    const { _statements: statements } = this.core
    for (const [key, one] of [...statements.entries()]) if (one === statement) statements.delete(key)
    if (statement === undefined && this.#mode !== 'session') this.#spoilt = true
  }
}

function textOrNull (value: unknown): string | null {
  return value === null || value === undefined ? null : String(value)
}
