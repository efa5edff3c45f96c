/**
 * What starts Node without anything of the test runner: neither its loaders nor coverage, with which everything
 * allocates more. tap puts both into the environment of each child process, also where the test says what that is.
 */
export function plainNode (...args: string[]): [file: string, args: string[]] {
  return ['env', ['-i', `PATH=${process.env.PATH}`, process.execPath, ...args]]
}
