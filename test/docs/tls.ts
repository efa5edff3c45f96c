// Servers that speak TLS, with a certificate for 127.0.0.1 that no authority of the system knows.
import { execFileSync } from 'node:child_process'
import { chmodSync, chownSync, copyFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import pg from 'pg'
import { freePort, host, startMariadb, startPostgres, startRedis, type Server, type Teardown } from '../support/services.js'
import { until } from '../support/until.js'

export interface Certificate { readonly key: string, readonly cert: string }

export function makeCertificate (folder: string): Certificate {
  const [key, cert] = [join(folder, 'key.pem'), join(folder, 'ca.pem')]
  execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes',
    '-keyout', key, '-out', cert, '-days', '2', '-subj', '/CN=localhost', '-addext', `subjectAltName=IP:${host}`,
  ], { stdio: 'ignore' })
  // The servers are other users.
  chmodSync(folder, 0o755)
  chmodSync(key, 0o644)
  return { key, cert }
}

type At = Pick<Server, 'url'>

export async function startSecureRedis (t: Teardown, { key, cert }: Certificate): Promise<At> {
  const port = String(await freePort())
  await startRedis(t, {
    args: ['--tls-port', port, '--tls-cert-file', cert, '--tls-key-file', key, '--tls-ca-cert-file', cert,
      '--tls-auth-clients', 'no'],
  })
  return { url: `rediss://${host}:${port}` }
}

export async function startSecureMariadb (t: Teardown, { key, cert }: Certificate): Promise<At> {
  return await startMariadb(t, { args: [`--ssl-cert=${cert}`, `--ssl-key=${key}`] })
}

export async function startSecurePostgres (t: Teardown, certificate: Certificate): Promise<At> {
  const server = await startPostgres(t, { own: true })
  const client = new pg.Client(server.url)
  await client.connect()
  const { rows: [{ folder }] } = await client.query("select current_setting('data_directory') as folder")
  const { uid, gid } = statSync(folder)
  for (const [name, file] of Object.entries(certificate)) {
    const copy = join(folder, `docs-${name}.pem`)
    copyFileSync(file as string, copy)
    chownSync(copy, uid, gid)
    chmodSync(copy, 0o600)
    await client.query(`alter system set ssl_${name}_file = 'docs-${name}.pem'`)
  }
  await client.query('alter system set ssl = on')
  await client.query('select pg_reload_conf()')
  await until(async () => (await client.query('show ssl')).rows[0].ssl === 'on', { what: 'TLS is on' })
  await client.end()
  return server
}
