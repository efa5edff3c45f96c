/**
 * The functions of the app that say where the database is, and as whom to log in (`url`, `connection`): whether they
 * say something else than when the server refused us.
 */
export class Login {
  readonly #functions: Array<() => unknown>
  /** What they said then. */
  #known: Promise<string | undefined> = Promise.resolve(undefined)
  /** They are being asked. */
  isAsked = false

  constructor ({ url, connection }: { readonly url?: unknown, readonly connection?: unknown }) {
    this.#functions = [url, connection].filter((one): one is () => unknown => typeof one === 'function')
  }

  /** There are such functions. */
  get changes (): boolean {
    return this.#functions.length > 0
  }

  /** The server refused us: remembers what they say. */
  note (): void {
    this.#known = this.#ask()
  }

  async isAnother (): Promise<boolean> {
    this.isAsked = true
    const known = await this.#known
    const answer = await this.#ask()
    this.isAsked = false
    return answer === undefined || answer !== known
  }

  /** Their answers as a text; undefined: one failed. The next create asks it again, and reports what it throws. */
  async #ask (): Promise<string | undefined> {
    const answers = await Promise.all(this.#functions.map(async (ask) => await ask())).catch(() => undefined)
    return answers && textOf(answers)
  }
}

/** Answers that have no text (they refer to themselves) can't be told apart. */
function textOf (answers: unknown): string {
  try {
    return JSON.stringify(answers)
  } catch {
    return ''
  }
}
