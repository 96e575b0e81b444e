// Drives @launchdarkly/node-server-sdk; see ../driver.mjs for arguments and lines.
//
// It sends a batch twice at most: again after 1 s on a network error, 400, 408, 429
// and from 500 on; then the batch is gone, and only the log's most talkative level
// tells.

import { createRequire } from 'node:module';
import { half, start } from '../driver.mjs';

const require = createRequire(import.meta.url);
const ld = require('@launchdarkly/node-server-sdk');
const { TestData } = require('@launchdarkly/node-server-sdk/integrations');

const r = start({ sdk: '@launchdarkly/node-server-sdk', at: import.meta.url });
const flag = `${r.run}-checkout`;
const data = new TestData();
await data.usePreconfiguredFlag({
  key: flag, version: 42, on: true, trackEvents: true, salt: 'sluice', prerequisites: [], targets: [], contextTargets: [],
  variations: ['control', 'treatment', { layout: 'wide' }],
  rules: [{
    id: `${r.run}-rule`, variation: 1, trackEvents: true,
    clauses: [{ contextKind: 'user', attribute: 'plan', op: 'in', values: ['pro'] }],
  }, {
    id: `${r.run}-companies`, variation: 2, trackEvents: true,
    clauses: [{ contextKind: 'company', attribute: 'key', op: 'startsWith', values: [r.run] }],
  }],
  fallthrough: { variation: 0 },
});

const log = (...words) => r.gaveUp(words.join(' '));
const client = ld.init(r.key, {
  updateProcessor: data.getFactory(), eventsUri: r.url, baseUri: 'http://127.0.0.1:1', streamUri: 'http://127.0.0.1:1',
  flushInterval: r.pause ? 0.3 : 600, privateAttributes: ['email'],
  logger: {
    error: log, warn: (...words) => process.stderr.write(words.join(' ') + '\n'), info: () => {},
    debug: (...words) => (/flush failed/i.test(words[0]) ? log(...words) : undefined),
  },
});
await client.waitForInitialization({ timeout: 10 });

for (const [user, i] of r.units()) {
  const person = { key: user, plan: half(i, 'pro', 'free'), email: `${user}@example.com` };
  let context = { kind: 'user', ...person };
  if (i % 5 === 3) context = { kind: 'multi', user: person, company: { key: `${user}-firm` } };
  if (i % 5 === 4) context = { kind: 'company', key: user, name: 'Acme' };
  const kind = i % 5 === 4 ? 'company' : 'user';
  const unit = { unit_type: kind, unit_id: user };
  await r.exposure({ experiment: flag, ...unit }, async () => {
    const detail = await client.variationDetail(flag, context, 'none');
    return { variant: String(detail.variationIndex), rule: detail.reason.ruleId ?? '', reason: detail.reason.kind };
  });
  const value = i + 0.25;
  await r.event({ name: `${r.run}-purchase`, value, ...unit, attributes: { sku: `SKU-${i}` } }, () => {
    client.track(`${r.run}-purchase`, context, { sku: `SKU-${i}` }, value);
  });
  await r.rest();
}
await client.flush((e) => {
  if (e) r.gaveUp(e);
});
client.close();
r.done();
