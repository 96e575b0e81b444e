// Drives @segment/analytics-node; see ../driver.mjs for arguments and lines.
//
// It resends a batch ten times (maxRetries) on 5xx, 408, 410, 429, 460 and network
// errors, after 0.5 to 2 s the first time and about twice as long each time, and tells
// of each event it gave up by the callback of track.

import { Analytics } from '@segment/analytics-node';
import { half, start } from '../driver.mjs';

const r = start({ sdk: '@segment/analytics-node', at: import.meta.url });
const analytics = new Analytics({
  writeKey: r.key, host: r.url, flushAt: 15, flushInterval: r.pause ? 300 : 10_000,
});
let waiting = 0;
const track = (event) => {
  waiting++;
  analytics.track(event, (err) => {
    waiting--;
    if (err) r.gaveUp(err.reason ?? err);
  });
};

for (const [user, i] of r.units()) {
  // A visitor who has not signed in yet has an id of the device only.
  const who = i % 5 === 4 ? { anonymousId: user } : { userId: user };
  const unit = { unit_type: who.userId ? 'user' : 'anonymous', unit_id: user };
  const variant = half(i, 'treatment', 'control');
  await r.exposure({ experiment: `${r.run}-checkout`, variant, ...unit }, () => {
    track({
      ...who, event: 'Experiment Viewed',
      properties: { experiment_id: `${r.run}-checkout`, experiment_name: 'Checkout', variation_id: variant, variation_name: 'Shown' },
    });
  });
  const value = i + 0.25;
  await r.event({ name: `${r.run}-purchase`, value, ...unit, attributes: { sku: `SKU-${i}` } }, () => {
    track({ ...who, event: `${r.run}-purchase`, properties: { value, sku: `SKU-${i}` } });
  });
  await r.rest();
}
await analytics.closeAndFlush({ timeout: 60_000 });
if (waiting > 0) r.gaveUp(`${waiting} events neither sent nor given up after a minute`);
r.done();
