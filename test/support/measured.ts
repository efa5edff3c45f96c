/** For what a test prints as measured: the value below which that share of them is. NaN for none. */
export function quantile (values: readonly number[], q: number): number {
  return [...values].sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(q * values.length))] ?? NaN
}

export const round = (ms: number): number => Math.round(ms * 10) / 10
