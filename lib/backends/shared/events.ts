import type { DriverEvent } from '../../../types/connector.js'

/** A connector's `driver` events, for the one listener that the pool is. */
export class DriverEvents {
  #listener: ((event: DriverEvent) => void) | undefined

  listen (listener: (event: DriverEvent) => void): void {
    this.#listener = listener
  }

  /** @returns whether anybody listens */
  tell (name: string, detail: Readonly<Record<string, unknown>> = {}): boolean {
    this.#listener?.({ name, ...detail })
    return this.#listener !== undefined
  }
}
