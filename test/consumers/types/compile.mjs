// Compiles projects with one TypeScript, in one process: `node compile.mjs <folder of TypeScript> <jobs as JSON>`.
//
// A job is `{ name, cwd, files, options, beside }`; `options` are those of a tsconfig.json. Prints
// `{ [name]: diagnostics[] }`, each diagnostic as `tsc --pretty false` prints it. What several jobs with the same
// options read is parsed once. Files in the folder `beside` are not checked themselves, nor is
// TypeScript's own library.
import { createRequire } from 'node:module'
import { join } from 'node:path'

const [, , home, jobs] = process.argv
const ts = createRequire(import.meta.url)(home)
const parsed = new Map()
const results = {}

for (const { name, cwd, files, options: given, beside } of JSON.parse(jobs)) {
  const { options, errors } = ts.convertCompilerOptionsFromJson(given, cwd)
  const host = ts.createCompilerHost(options)
  const read = host.getSourceFile
  host.getCurrentDirectory = () => cwd
  host.getSourceFile = (file, how, ...rest) => {
    const key = `${given.module} ${given.moduleResolution} ${how.impliedNodeFormat} ${file}`
    if (!parsed.has(key)) parsed.set(key, read.call(host, file, how, ...rest))
    return parsed.get(key)
  }
  const program = ts.createProgram({ rootNames: files.map((file) => join(cwd, file)), options, host })
  const found = [...errors, ...program.getOptionsDiagnostics(), ...program.getGlobalDiagnostics()]
  for (const file of program.getSourceFiles()) {
    if (program.isSourceFileDefaultLibrary(file) || (beside !== undefined && file.fileName.startsWith(beside))) continue
    found.push(...program.getSyntacticDiagnostics(file), ...program.getSemanticDiagnostics(file))
  }
  results[name] = found.map((one) => ts.formatDiagnostic(one, host).trimEnd())
}
console.log(JSON.stringify(results))
