// Builds dist/ (what is published) and build/ (the modules, for tests).

import { execFileSync } from 'node:child_process';
import { readFileSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const { version } = JSON.parse(readFileSync('package.json', 'utf8'));
rmSync('dist', { recursive: true, force: true });
rmSync('build', { recursive: true, force: true });

const common = { bundle: true, target: 'es2020', define: { VERSION: JSON.stringify(version) }, logLevel: 'warning' };
// Names that are nobody's business outside: none of them is in types.ts, in JSON or the platform's.
const inside = ['openBytes', 'openSince', 'waiting', 'flying', 'waiters', 'stopFlush', 'stopPump', 'stopAdopt', 'inFlight', 'notBefore',
  'failedAt', 'fails', 'told', 'avoid', 'giveUp', 'settle', 'release', 'spill', 'spills', 'saving', 'held', 'started', 'closing', 'drops',
  'halve', 'note', 'tell', 'seal', 'pump', 'adopt', 'hurry', 'forBeacon', 'worked', 'failed', 'pick', 'maxAge', 'flushMs', 
  'damaged', 'maxBatchBytes', 'uuid', 'timer', 'hide', 'resume', 'beat', 'leave', 'back', 'due', 'aborts', 'look',
  'created', 'closed', 'own', 'base', 'cap', 'list', 'send', 'save', 'all', 'load', 'put', 'last', 'user', 'store', 'timeout', 'drop', 'tries', 'keys'];
const browser = {
  ...common, platform: 'browser', minify: true, entryPoints: ['src/browser.ts'],
  mangleProps: new RegExp(`^(${inside.join('|')})$`),
};
const node = { ...common, platform: 'node', target: 'node18' };

await Promise.all([
  build({ ...browser, format: 'esm', outfile: 'dist/browser.js' }),
  build({ ...browser, format: 'iife', entryPoints: ['src/global.ts'], outfile: 'dist/sluice.global.js' }),
  build({ ...node, format: 'esm', entryPoints: ['src/node.ts'], outfile: 'dist/node.js' }),
  build({ ...node, format: 'cjs', entryPoints: ['src/node.ts'], outfile: 'dist/node.cjs' }),
  build({ ...common, platform: 'neutral', format: 'esm', entryPoints: ['src/openfeature.ts'], outfile: 'dist/openfeature.js' }),
  build({ ...common, platform: 'neutral', format: 'cjs', entryPoints: ['src/openfeature.ts'], outfile: 'dist/openfeature.cjs' }),
  build({ ...common, bundle: false, define: {}, format: 'esm', entryPoints: ['src/*.ts'], outdir: 'build' }),
]);
const tsc = createRequire(import.meta.url).resolve('typescript/bin/tsc');
execFileSync(process.execPath, [tsc, '-p', fileURLToPath(new URL('tsconfig.json', import.meta.url))], { stdio: 'inherit' });
