import type { ConnectorError, DriverEvent } from '../../../types/connector.js'

/** A connector's `driver` events, for the one listener that the pool is. */
export class DriverEvents {
  #listener: ((event: DriverEvent) => void) | undefined
  #failed: ConnectorError | undefined

  listen (listener: (event: DriverEvent) => void, failed?: ConnectorError): void {
    this.#listener = listener
    this.#failed = failed
  }

  tell (name: string, detail: Readonly<Record<string, unknown>> = {}): void {
    this.#listener?.({ name, ...detail })
  }

  /** @returns whether anybody is told */
  fail (...failure: Parameters<ConnectorError>): boolean {
    this.#failed?.(...failure)
    return this.#failed !== undefined || this.#listener !== undefined
  }
}
