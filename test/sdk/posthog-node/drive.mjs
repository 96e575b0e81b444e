// Drives posthog-node; see ../driver.mjs for arguments and lines. With
// POSTHOG_CAPTURE_MODE=v1 in the environment it speaks its newer protocol.
//
// It sends a batch up to RETRIES times more, RETRY_MS apart (in v1 twice as long each
// time), on 5xx, 429 and network errors, in v1 on 404 and 408 too. What failed so often
// because of the network stays in its queue for the next flush; else it is gone.

import { PostHog } from 'posthog-node';
import { half, serve, start } from '../driver.mjs';

const RETRIES = 10;
const RETRY_MS = 200;

const r = start({ sdk: 'posthog-node', at: import.meta.url });
const key = `${r.run}-checkout`;

// What the flags endpoint says, by the user asked for.
const flags = (path, body) => {
  if (!path.startsWith('/flags')) return undefined;
  const variant = half(Number(JSON.parse(body).distinct_id.match(/\d+$/)[0]), 'treatment', 'control');
  return {
    errorsWhileComputingFlags: false, requestId: '11111111-2222-4333-8444-555555555555',
    flags: {
      [key]: {
        key, enabled: true, variant, reason: { code: 'condition_match', condition_index: 0, description: 'Matched condition set 1' },
        metadata: { id: 5, version: 9 },
      },
    },
  };
};
const server = await serve(flags);

const client = new PostHog(r.key, {
  host: r.url, fetchRetryCount: RETRIES, fetchRetryDelay: RETRY_MS, flushAt: 15, flushInterval: r.pause ? 300 : 600_000,
  // Flags come from the driver, events go to the collector.
  fetch: (url, options) => fetch(url.includes('/flags') ? server.url + '/flags/?v=2' : url, options),
});
client.on('error', (e) => r.gaveUp(e));
let flushed = 0;
client.on('flush', (messages) => { flushed += messages.length; });

// An event gets its time some ticks after the call that makes it.
const queued = async (log) => {
  const event = new Promise((done) => {
    const off = client.on('capture', () => { off(); done(); });
  });
  const result = await log();
  await event;
  return result;
};

for (const [user, i] of r.units()) {
  const unit = { unit_type: 'user', unit_id: user };
  await r.exposure({ experiment: key, reason: 'Matched condition set 1', ...unit }, async () => (
    { variant: await queued(() => client.getFeatureFlag(key, user)) }
  ));
  const value = i + 0.25;
  await r.event({ name: `${r.run}-purchase`, value: null, ...unit, attributes: { amount: String(value), sku: `SKU-${i}` } }, () => (
    queued(() => client.capture({ distinctId: user, event: `${r.run}-purchase`, properties: { amount: value, sku: `SKU-${i}` } }))
  ));
  await r.rest();
}
await client.shutdown(60_000);
server.close();
if (flushed < 2 * r.users) r.gaveUp(`${2 * r.users - flushed} events neither sent nor given up after a minute`);
r.done();
