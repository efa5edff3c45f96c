/**
 * What draws or loads at random finds more the longer it goes on: `npm test` does `some` of it, `npm run test:full`
 * does `all`. A file that imports this one is in that run.
 */
export function some (some: number, all: number): number {
  return process.env.POOL_TEST_FULL === '1' ? all : some
}
