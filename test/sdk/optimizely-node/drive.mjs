// Drives @optimizely/optimizely-sdk; see ../driver.mjs for arguments and lines.
//
// It has no key: the account's id in the body is all that tells who sends, so KEY
// stands there. It sends a batch three times at most, 0.2 to 1 s apart, on anything
// but a 2xx; then its events are gone.

import {
  ERROR, createBatchEventProcessor, createInstance, createLogger, createStaticProjectConfigManager, eventDispatcher,
} from '@optimizely/optimizely-sdk';
import { start } from '../driver.mjs';

const r = start({ sdk: '@optimizely/optimizely-sdk', at: import.meta.url });
const id = (name) => `${r.run}-${name}`;
const everybody = { entityId: '', endOfRange: 10000 };
// The SDK sends ids of variations that are numbers only.
const variations = [
  { id: '401', key: 'control', featureEnabled: false, variables: [] },
  { id: '402', key: 'treatment', featureEnabled: true, variables: [] },
];
const datafile = JSON.stringify({
  version: '4', revision: '42', projectId: 'p1', accountId: r.key, anonymizeIP: true, botFiltering: false, sendFlagDecisions: true,
  sdkKey: 'sluice', environmentKey: 'test', attributes: [{ id: 'a1', key: 'plan' }], audiences: [], typedAudiences: [], groups: [],
  events: [{ id: 'e1', key: id('purchase'), experimentIds: [id('checkout')] }],
  experiments: [{
    id: id('checkout'), key: id('rule'), status: 'Running', layerId: 'l1', audienceIds: [], forcedVariations: {}, variations,
    trafficAllocation: [{ entityId: variations[0].id, endOfRange: 5000 }, { ...everybody, entityId: variations[1].id }],
  }],
  featureFlags: [{ id: 'f1', key: id('flag'), experimentIds: [id('checkout')], rolloutId: '', variables: [] }],
  rollouts: [], integrations: [], variables: [],
});

// What was answered with success, by the events' own ids.
const delivered = new Set();
let last = Date.now();
const dispatchEvent = async (event) => {
  // The SDK's own dispatcher, to another address.
  const response = await eventDispatcher.dispatchEvent({ ...event, url: `${r.url}/v1/events` }).finally(() => { last = Date.now(); });
  if (response.statusCode >= 200 && response.statusCode < 300) {
    for (const v of event.params.visitors) for (const s of v.snapshots) for (const e of s.events) delivered.add(e.uuid);
  }
  return response;
};

const client = createInstance({
  projectConfigManager: createStaticProjectConfigManager({ datafile }),
  eventProcessor: createBatchEventProcessor({ eventDispatcher: { dispatchEvent }, batchSize: 15, flushInterval: r.pause ? 300 : 1_000 }),
  logger: createLogger({ level: ERROR, logHandler: { log: (_, message) => process.stderr.write(message + '\n') } }),
});
await client.onReady({ timeout: 10_000 });

for (const [visitor, i] of r.units()) {
  const unit = { unit_type: 'visitor', unit_id: visitor };
  const user = client.createUserContext(visitor, { plan: i % 2 ? 'pro' : 'free' });
  await r.exposure({ experiment: id('checkout'), ...unit }, () => {
    const decision = user.decide(id('flag'));
    return { variant: variations.find((v) => v.key === decision.variationKey).id, rule: decision.ruleKey };
  });
  const value = i + 0.25;
  await r.event({ name: id('purchase'), value, ...unit, attributes: { sku: `SKU-${i}` } }, () => {
    user.trackEvent(id('purchase'), { value, sku: `SKU-${i}` });
  });
  await r.rest();
}
// Closing calls off what waits to be sent again, and the SDK is quiet once it gave up.
const missing = () => 2 * r.users - delivered.size;
while (missing() > 0 && Date.now() - last < 4_000) {
  await new Promise((done) => setTimeout(done, 50));
}
await client.close();
if (missing() > 0) r.gaveUp(`${missing()} events were not taken`);
r.done();
