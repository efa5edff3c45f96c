import pg from 'pg'

// What tests ask of pg and it has from 8.21 on: for those that run with an older one (`npm run test:oldest`).

type Status = ReturnType<pg.Client['getTransactionStatus']>

const client = pg.Client.prototype as unknown as {
  getTransactionStatus?: (this: object) => Status
  _handleReadyForQuery (message: { status: Status }): void
}

if (client.getTransactionStatus === undefined) {
  const statuses = new WeakMap<object, Status>()
  const { _handleReadyForQuery } = client
  client._handleReadyForQuery = function (message) {
    statuses.set(this, message.status)
    _handleReadyForQuery.call(this, message)
  }
  client.getTransactionStatus = function () {
    return statuses.get(this) ?? null
  }
}
