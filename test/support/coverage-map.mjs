// Every test may cover all of ours, and nothing else counts: neither tests nor their support.
export default () => ['index.ts', 'lib/**/*.ts']
