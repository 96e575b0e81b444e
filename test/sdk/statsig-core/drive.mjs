// Drives @statsig/statsig-node-core; see ../driver.mjs for arguments and lines. KEY
// must start with "secret-".
//
// It sends by itself when a minute has passed or 1,000 events wait, so the driver asks
// it to. A batch that failed is put back and sent again with the next flush.
//
// The SDK is a native library: nothing here could keep it from other hosts, so its
// rules come from a server in this process, and what else would call out is off.

import { createRequire } from 'node:module';
import { half, serve, start } from '../driver.mjs';

const { Statsig, StatsigUser } = createRequire(import.meta.url)('@statsig/statsig-node-core');
const r = start({ sdk: '@statsig/statsig-node-core', at: import.meta.url, keyPrefix: 'secret-' });
const gate = `${r.run}-gate`;
const experiment = `${r.run}-color`;

const rule = (id, conditions, value) => ({
  name: id, groupName: id, id, salt: id, passPercentage: 100, returnValue: value, conditions, idType: 'userID', isExperimentGroup: true,
});
const spec = (type, entity, defaultValue, rules) => ({
  type, entity, salt: 'sluice', enabled: true, isActive: true, idType: 'userID', defaultValue, rules, version: 7,
});
const server = await serve((path) => (!path.startsWith('/v2/specs') ? undefined : {
  has_updates: true, time: Date.now(), response_format: 'dcs-v2', layer_configs: {}, layers: {}, experiment_to_layer: {}, id_lists: {},
  condition_map: {
    pro: { type: 'user_field', field: 'plan', operator: 'any', targetValue: ['pro'], idType: 'userID' },
    everyone: { type: 'public', idType: 'userID' },
  },
  feature_gates: { [gate]: spec('feature_gate', 'feature_gate', false, [rule(`${r.run}-gate-pro`, ['pro'], true)]) },
  dynamic_configs: {
    [experiment]: spec('dynamic_config', 'experiment', {}, [
      rule(`${r.run}-test`, ['pro'], { color: 'green' }), rule(`${r.run}-control`, ['everyone'], { color: 'grey' }),
    ]),
  },
}));

const statsig = new Statsig(r.key, {
  specsUrl: `${server.url}/v2/specs`, logEventUrl: `${r.url}/v1/log_event`, idListsUrl: `${server.url}/v1/get_id_lists`,
  enableIdLists: false, disableCountryLookup: true, fallbackToStatsigApi: false, environment: 'production', outputLogLevel: 'error',
  specsSyncIntervalMs: 600_000,
});
const ready = await statsig.initialize();
if (!ready.isSuccess) r.gaveUp(ready.error);

for (const [userID, i] of r.units()) {
  const user = new StatsigUser({ userID, email: `${userID}@example.com`, custom: { plan: half(i, 'pro', 'free') } });
  const unit = { unit_id: userID };
  if (i % 4 < 2) {
    await r.exposure({ experiment, ...unit }, () => {
      const rule = statsig.getExperiment(user, experiment).ruleID;
      return { variant: rule, rule };
    });
  } else {
    await r.exposure({ experiment: gate, ...unit }, () => {
      const g = statsig.getFeatureGate(user, gate);
      return { variant: String(g.value), rule: g.ruleID };
    });
  }
  const value = i + 0.25;
  await r.event({ name: `${r.run}-purchase`, value, ...unit, attributes: { sku: `SKU-${i}` } }, () => {
    statsig.logEvent(user, `${r.run}-purchase`, value, { sku: `SKU-${i}` });
  });
  if (r.pause) {
    await r.rest();
    if (i % 2) statsig.flushEvents();
  }
}
// A flush says nothing of what it could not send; the shutdown does, and sends once.
for (let tries = 0; tries < 6; tries++) {
  await statsig.flushEvents();
  await new Promise((done) => setTimeout(done, 150));
}
const end = await statsig.shutdown();
if (!end.isSuccess) r.gaveUp(end.error);
server.close();
r.done();
