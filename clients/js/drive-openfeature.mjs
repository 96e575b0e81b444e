// Evaluates flags through @openfeature/server-sdk with the exposure hook, and prints
// as JSON lines what was logged, for a test to look for in ClickHouse.
//
//   node drive-openfeature.mjs COLLECTOR_URL KEY RUN_ID [USERS]
//
// RUN_ID goes into every name; USERS, 20 unless given, is the number of evaluations:
// a boolean flag, a string flag and one by company in turn.
//   {"type":"exposure","experiment","variant","rule","unit_type","unit_id","from","to"}
//   {"type":"done","sdk","version","exposures","events","elapsed_ms"}
// from and to: the event's time lies between, epoch ms.
// Exit status: 0 all acknowledged; 1 not; 2 wrong arguments.

import { readFileSync } from 'node:fs';
import { InMemoryProvider, OpenFeature } from '@openfeature/server-sdk';
import { createLogger } from './dist/node.js';
import { exposureHook } from './dist/openfeature.js';

const [url, key, run, users = '20'] = process.argv.slice(2);
if (!url || !key || !/^[\w-]+$/.test(run ?? '') || !/^[1-9]\d{0,3}$/.test(users)) {
  process.stderr.write('usage: node drive-openfeature.mjs COLLECTOR_URL KEY RUN_ID [USERS]\n');
  process.exit(2);
}
const print = (line) => process.stdout.write(JSON.stringify(line) + '\n');
const { version } = JSON.parse(readFileSync(new URL('node_modules/@openfeature/server-sdk/package.json', import.meta.url)));
const started = Date.now();

const last = (context) => Number(context.targetingKey.match(/\d+$/)[0]);
await OpenFeature.setProviderAndWait(new InMemoryProvider({
  [`${run}-gate`]: {
    variants: { on: true, off: false }, defaultVariant: 'off', disabled: false,
    contextEvaluator: (context) => (last(context) % 2 ? 'on' : 'off'),
  },
  [`${run}-color`]: {
    variants: { red: '#f00', green: '#0f0' }, defaultVariant: 'red', disabled: false,
    contextEvaluator: (context) => (last(context) % 4 < 2 ? 'red' : 'green'),
  },
}));
const logger = createLogger({ endpoints: url, key, onError: (e) => process.stderr.write(JSON.stringify(e) + '\n') });
const unitType = (context) => (context.kind === 'company' ? 'company' : 'user');
OpenFeature.addHooks(exposureHook(logger, { unitType }));
const client = OpenFeature.getClient();

let exposures = 0;
for (let i = 0; i < Number(users); i++) {
  const kind = i % 3 === 2 ? 'company' : 'user';
  const context = { targetingKey: `${run}-u${i}`, kind };
  const from = Date.now();
  const details = i % 3 === 1
    ? await client.getStringDetails(`${run}-color`, 'none', context)
    : await client.getBooleanDetails(`${run}-gate`, false, context);
  print({
    type: 'exposure', experiment: details.flagKey, variant: details.variant, rule: '', unit_type: kind,
    unit_id: context.targetingKey, from, to: Date.now(),
  });
  exposures++;
}
await logger.close(60_000);
await OpenFeature.close();
const stats = logger.stats();
print({ type: 'done', sdk: '@openfeature/server-sdk', version, exposures, events: 0, elapsed_ms: Date.now() - started });
process.exitCode = stats.acknowledged === exposures && !stats.rejected ? 0 : 1;
