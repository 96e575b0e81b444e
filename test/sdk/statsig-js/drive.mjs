// Drives @statsig/js-client in Node; see ../driver.mjs for arguments and lines. KEY
// must start with "client-".
//
// The SDK sends a batch up to four times at once (again after 0.1 to 0.5 s), puts it
// back in its queue, and tries so up to nine times more when it flushes again, on
// 408, 5xx and network errors. What is left when it shuts down is kept for the next
// session of a browser; Node has none. It reports what it sent, so what is missing
// there was given up.

import statsigModule from '@statsig/js-client';
import { half, start } from '../driver.mjs';

const { StatsigClient, LogLevel } = statsigModule;
const r = start({ sdk: '@statsig/js-client', at: import.meta.url, keyPrefix: 'client-' });
const gate = `${r.run}-gate`;
const experiment = `${r.run}-color`;

// What the SDK would fetch for a user: everything is decided.
const values = (user, i) => JSON.stringify({
  has_updates: true, time: 1700000000000, hash_used: 'none', user, layer_configs: {},
  feature_gates: { [gate]: { name: gate, value: i % 2 === 1, rule_id: `${r.run}-gate-rule`, id_type: 'userID', secondary_exposures: [] } },
  dynamic_configs: {
    [experiment]: {
      name: experiment, value: { color: half(i, 'green', 'grey') }, rule_id: half(i, `${r.run}-test`, `${r.run}-control`), group: '',
      id_type: 'userID', is_device_based: false, is_user_in_experiment: true, is_experiment_active: true,
      secondary_exposures: [{ gate: `${r.run}-holdout`, gateValue: 'false', ruleID: 'holdout' }],
    },
  },
});

let client;
const delivered = new Set();
const wanted = [];
for (const [userID, i] of r.units()) {
  const user = { userID, email: `${userID}@example.com`, custom: { plan: half(i, 'pro', 'free') } };
  if (!client) {
    client = new StatsigClient(r.key, user, {
      networkConfig: { logEventUrl: `${r.url}/v1/rgstr`, sdkExceptionUrl: `${r.url}/v1/sdk_exception`, api: 'http://127.0.0.1:1/v1' },
      loggingEnabled: 'always', logLevel: LogLevel.None, environment: { tier: 'production' },
    });
    client.on('logs_flushed', ({ events }) => {
      for (const e of events) delivered.add(`${e.eventName} ${e.user?.userID}`);
    });
    client.dataAdapter.setData(values(user, i));
    client.initializeSync();
  } else {
    client.dataAdapter.setData(values(user, i));
    client.updateUserSync(user);
  }
  const unit = { unit_id: userID };
  if (i % 4 < 2) {
    wanted.push(`statsig::config_exposure ${userID}`);
    await r.exposure({ experiment, ...unit }, () => {
      const rule = client.getExperiment(experiment).ruleID;
      return { variant: rule, rule };
    });
  } else {
    wanted.push(`statsig::gate_exposure ${userID}`);
    await r.exposure({ experiment: gate, ...unit }, () => {
      const g = client.getFeatureGate(gate);
      return { variant: String(g.value), rule: g.ruleID };
    });
  }
  const value = i + 0.25;
  wanted.push(`${r.run}-purchase ${userID}`);
  await r.event({ name: `${r.run}-purchase`, value, ...unit, attributes: { sku: `SKU-${i}` } }, () => {
    client.logEvent(`${r.run}-purchase`, value, { sku: `SKU-${i}` });
  });
  if (r.pause) {
    await r.rest();
    if (i % 2) client.flush().catch(() => {});
  }
}
// flush() returns while another flush, such as that of a change of the user, is still
// sending, and what a flush could not send is sent by the next one.
const missing = () => wanted.filter((w) => !delivered.has(w));
for (let tries = 0; tries < 100 && missing().length > 0; tries++) {
  await client.flush();
  await new Promise((done) => setTimeout(done, 200));
}
await client.shutdown();
for (const w of missing()) r.gaveUp(`not flushed: ${w}`);
r.done();
