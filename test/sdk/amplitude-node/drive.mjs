// Drives @amplitude/analytics-node; see ../driver.mjs for arguments and lines.
//
// It resends what a timer sent, at once the first time and then after 1 s more each
// time, up to flushMaxRetries times: on 408, 429 and 5xx. A request that ended
// without an answer (refused, hung up on) it does not send again, and what flush()
// was called for neither, so the driver waits for the timer. The promise of track
// tells what became of an event.

import { createInstance, Types } from '@amplitude/analytics-node';
import { half, start } from '../driver.mjs';

const r = start({ sdk: '@amplitude/analytics-node', at: import.meta.url });
const client = createInstance();
await client.init(r.key, {
  serverUrl: `${r.url}/2/httpapi`, flushIntervalMillis: 300, flushQueueSize: 15, flushMaxRetries: 12, logLevel: Types.LogLevel.None,
}).promise;

// An event gets its time some ticks after the call that makes it, before this plugin
// sees it.
let stamped;
await client.add({ name: 'stamped', type: 'enrichment', execute: async (event) => { stamped(); return event; } }).promise;

const sent = [];
const track = async (...args) => {
  const ready = new Promise((done) => { stamped = done; });
  sent.push(client.track(...args).promise);
  await ready;
};
for (const [user, i] of r.units()) {
  const who = i % 5 === 4 ? { device_id: user } : { user_id: user, device_id: 'tablet' };
  const unit = { unit_type: who.user_id ? 'user' : 'device', unit_id: user };
  const variant = half(i, 'treatment', 'control');
  await r.exposure({ experiment: `${r.run}-checkout`, variant, ...unit }, () => (
    track(half(i, '$exposure', '[Experiment] Exposure'), { flag_key: `${r.run}-checkout`, variant }, who)
  ));
  const value = i + 0.25;
  await r.event({ name: `${r.run}-purchase`, value: null, ...unit, attributes: { amount: String(value), sku: `SKU-${i}` } }, () => (
    track(`${r.run}-purchase`, { amount: value, sku: `SKU-${i}` }, who)
  ));
  await r.rest();
}
for (const { code, message } of await Promise.all(sent)) {
  if (code !== 200) r.gaveUp(`${code} ${message}`);
}
r.done();
