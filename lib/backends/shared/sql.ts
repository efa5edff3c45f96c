/** An SQL identifier in quotes: those of the standard, or MySQL's. */
export function quote (name: string, mark: '"' | '`' = '"'): string {
  return mark + name.replaceAll(mark, mark + mark) + mark
}
