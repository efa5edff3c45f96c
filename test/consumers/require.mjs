// `require()` from CommonJS.
export default async ({ folder, install, run, check, server }) => {
  const at = folder('app')
  await install(at, ['fastify-pool', 'fastify', 'libsql'])
  const s = await server('redis')
  const r = await run('node', ['-e', 'console.log(typeof require("fastify-pool").default)'], { cwd: at })
  check(r.code === 0 && r.stdout === 'function\n', 'loads', r)
  check(s.url.startsWith('redis'), 'server')
}
