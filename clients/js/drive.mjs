// Drives the logger against collectors, for tests.
//
//   node drive.mjs ENDPOINTS KEY RUN_ID COUNT RATE_PER_SECOND [PERSIST_DIR]
//
// ENDPOINTS is comma-separated. Logs COUNT exposures at that rate: experiment RUN_ID,
// variants a and b in turn, unit RUN_ID-u0, -u1 and so on. Then it flushes until
// everything is acknowledged, for two minutes at most, closes, and prints one line:
//   {"type":"done","exposures":COUNT,"stats":{…}}
// Exit status: 0 all acknowledged; 1 something was dropped, not taken or is unsent;
// 2 wrong arguments. What goes wrong on the way is told on standard error.

import { createLogger } from './dist/node.js';

const [endpoints, key, run, count, rate, dir] = process.argv.slice(2);
if (!endpoints || !key || !run || !/^\d+$/.test(count ?? '') || !(Number(rate) > 0)) {
  process.stderr.write('usage: node drive.mjs ENDPOINTS KEY RUN_ID COUNT RATE_PER_SECOND [PERSIST_DIR]\n');
  process.exit(2);
}
const logger = createLogger({
  endpoints: endpoints.split(','),
  key,
  ...(dir ? { persist: { dir } } : {}),
  onError: (e) => process.stderr.write(JSON.stringify(e) + '\n'),
});
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

const started = Date.now();
for (let i = 0; i < Number(count);) {
  const due = Math.min(Number(count), Math.floor(((Date.now() - started) / 1000) * Number(rate)) + 1);
  for (; i < due; i++) logger.exposure({ experiment: run, variant: i % 2 ? 'b' : 'a', unitId: `${run}-u${i}` });
  await pause(5);
}
const deadline = Date.now() + 120_000;
do {
  await logger.flush(deadline - Date.now());
  if (logger.stats().pending === 0) break;
  await pause(200);
} while (Date.now() < deadline);
await logger.close(1000);

const stats = logger.stats();
process.stdout.write(JSON.stringify({ type: 'done', exposures: Number(count), stats }) + '\n');
const dropped = Object.values(stats.dropped).reduce((a, b) => a + b, 0);
process.exitCode = dropped || stats.pending || stats.invalid || stats.rejected ? 1 : 0;
