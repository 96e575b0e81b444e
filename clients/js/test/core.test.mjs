import assert from 'node:assert/strict';
import test from 'node:test';
import { halfKey } from '../build/encode.js';
import { answer, Clock, fake, rest, see } from './kit.mjs';

test('a batch is closed by count, by bytes and by age', async () => {
  const { core, requests, clock } = fake({ batchSize: 3, batchBytes: 1000 });
  for (let i = 0; i < 4; i++) core.exposure(see(i));
  await rest();
  assert.deepEqual(requests.map((r) => r.body.events.length), [3]);
  await clock.tick(999);
  assert.equal(requests.length, 1);
  await clock.tick(1);
  assert.deepEqual(requests.map((r) => r.body.events.length), [3, 1]);
  for (let i = 0; i < 2; i++) core.event({ name: 'n', unitId: 'u', attributes: { a: 'x'.repeat(700) } });
  await rest();
  assert.equal(requests.length, 3, 'the second did not fit');
  const all = requests.flatMap((r) => r.body.events);
  assert.equal(new Set(all.map((e) => e.event_id)).size, 5);
});

test('an event is what the native API wants', async () => {
  const { core, requests } = fake();
  core.exposure({
    experiment: 'e', variant: true, unitId: 7, unitType: 'device', rule: 'r', reason: 'SPLIT', time: new Date(5000),
    attributes: { s: 'half \ud800', n: 1, b: false, nil: null, gone: undefined, nan: NaN, deep: { x: [1] }, f() {} },
  });
  core.event({ name: 'buy', unitId: 'u', value: 2.5 });
  await core.flush();
  const [x, e] = requests[0].body.events;
  assert.deepEqual({ ...x, event_id: 0 }, {
    experiment: 'e', variant: 'true', unit_id: '7', unit_type: 'device', rule: 'r', reason: 'SPLIT', time: 5000, event_id: 0,
    attributes: { s: 'half \ufffd', n: 1, b: false, nil: null, deep: '{"x":[1]}' },
  });
  assert.deepEqual({ ...e, event_id: 0, time: 0 }, { kind: 'event', name: 'buy', unit_id: 'u', value: 2.5, time: 0, event_id: 0 });
  assert.deepEqual(requests[0].body.sdk, { name: 'sluice-js', version: 'test' });
  assert.equal(requests[0].init.headers.authorization, 'Bearer k');
  assert.match(x.event_id, /^[0-9a-f-]{36}$/);
});

test('what cannot be right is counted and told, and nothing is thrown', async () => {
  const { core, errors, requests } = fake();
  const bad = [
    undefined, null, 'x', {}, see(0, { unitId: '' }), see(0, { variant: {} }), see(0, { experiment: 'x'.repeat(4097) }),
    see(0, { unitId: 'a\0' }), see(0, { unitId: '\ud800' }), see(0, { time: 'x' }), see(0, { time: NaN }),
    { get experiment() { throw new Error('mine'); } },
  ];
  for (const b of bad) core.exposure(b);
  core.event({ name: 'n', unitId: 'u', value: Infinity });
  core.event({ name: 'sluice.dropped', unitId: 'u' });
  await core.flush();
  assert.equal(core.stats().invalid, bad.length + 2);
  assert.equal(errors.length, bad.length + 2);
  assert.equal(requests.length, 0);
  const thrower = fake({ onError: () => { throw new Error('mine'); } });
  thrower.core.exposure({});
});

for (const options of [{ endpoints: [] }, { endpoints: 'nonsense' }, { endpoints: 'ftp://x' }, { endpoints: 'http://a?b' }, { key: '' }, { key: 'ä' }, { key: undefined }]) {
  test(`a logger with ${JSON.stringify(options)} is off`, async () => {
    const { core, errors } = fake(options);
    assert.equal(errors[0].code, 'config');
    core.exposure(see(0));
    await core.flush();
    await core.close();
    assert.equal(core.stats().invalid, 1);
  });
}

for (const [name, failure] of [
  ['network', () => { throw new TypeError('fetch failed'); }], ['408', () => answer(408)], ['429', () => answer(429)],
  ['500', () => answer(500)], ['503', () => answer(503)], ['a portal', () => answer(200, '<html>')], ['204', () => new Response(null, { status: 204 })],
]) {
  test(`${name}: the same key and events again, sent_at anew`, async () => {
    const { core, requests, clock } = fake({ reply: (_, n) => (n < 3 ? failure() : answer(202)) });
    const attributes = { a: 1 };
    core.exposure(see(0, { attributes }));
    const done = core.flush();
    attributes.a = 2; // the host's own object, changed later
    await clock.tick(60_000);
    await done;
    assert.equal(requests.length, 4);
    assert.equal(new Set(requests.map((r) => r.key)).size, 1);
    assert.equal(new Set(requests.map((r) => r.events)).size, 1);
    assert.equal(requests[3].body.sent_at, requests[3].at);
    assert.ok(requests[3].at > requests[0].at);
    const s = core.stats();
    assert.deepEqual([s.acknowledged, s.retries, s.pending], [1, 3, 0]);
  });
}

test('waits are random up to base, 2 base, 4 base, and the cap', async () => {
  for (const [share, want] of [[1, [500, 1000, 2000, 4000, 5000, 5000]], [0.5, [250, 500, 1000, 2000, 2500, 2500]]]) {
    const { core, requests, clock } = fake({ reply: () => answer(503), random: () => share, retryCapMs: 5000 });
    core.exposure(see(0));
    void core.flush();
    await clock.tick(20_000);
    assert.deepEqual(requests.slice(1, 7).map((r, i) => r.at - requests[i].at), want);
  }
});

test('an attempt that takes too long is cut off and made again', async () => {
  const { core, requests, clock } = fake({
    requestTimeoutMs: 3000,
    reply: (r, n) => (n ? answer(202) : new Promise((_, no) => r.init.signal.addEventListener('abort', () => no(new Error('aborted'))))),
  });
  core.exposure(see(0));
  void core.flush();
  await clock.tick(2999);
  assert.equal(requests.length, 1);
  await clock.tick(501);
  assert.equal(requests.length, 2);
  assert.equal(core.stats().acknowledged, 1);
});

test('Retry-After is waited for, in seconds and as a date', async () => {
  for (const after of ['7', new Date(1_800_000_007_000).toUTCString()]) {
    const { core, requests, clock } = fake({ random: () => 0, reply: (_, n) => (n ? answer(202) : answer(503, {}, { 'retry-after': after })) });
    core.exposure(see(0));
    void core.flush();
    await clock.tick(6900);
    assert.equal(requests.length, 1);
    core.resume(); // the network is back: still not before
    await clock.tick(99);
    assert.equal(requests.length, 1);
    await clock.tick(1);
    assert.equal(requests.length, 2);
  }
});

test('the next endpoint at once, the first again after a while', async () => {
  let down = true;
  const { core, requests, clock } = fake({
    endpoints: ['http://a/', 'http://b/x'],
    reply: (r) => (r.url.startsWith('http://a') && down ? answer(503, {}, { 'retry-after': '2' }) : answer(202)),
  });
  core.exposure(see(0));
  await core.flush();
  assert.deepEqual(requests.map((r) => r.url), ['http://a/v1/exposures', 'http://b/x/v1/exposures']);
  assert.equal(requests[0].key, requests[1].key);
  assert.equal(requests[1].at, requests[0].at);
  down = false;
  await clock.tick(10_000);
  core.exposure(see(1));
  await core.flush();
  assert.match(requests[2].url, /b/, 'not yet preferred');
  await clock.tick(20_001);
  core.exposure(see(2));
  await core.flush();
  assert.match(requests[3].url, /a/);
});

test('all endpoints failing: in turn, each after its own wait', async () => {
  const { core, requests, clock } = fake({ endpoints: ['http://a', 'http://b'], reply: (_, n) => (n < 4 ? answer(500) : answer(202)) });
  core.exposure(see(0));
  void core.flush();
  await clock.tick(5000);
  assert.deepEqual(requests.map((r) => r.url[7]), ['a', 'b', 'a', 'b', 'a']);
});

test('a failing endpoint gets one request at a time', async () => {
  let n = 0, most = 0;
  const { core, clock } = fake({
    batchSize: 1,
    reply: async () => {
      most = Math.max(most, ++n);
      await rest();
      n--;
      return answer(503);
    },
  });
  for (let i = 0; i < 20; i++) core.exposure(see(i));
  await clock.tick(0);
  await rest();
  assert.equal(most, 4);
  most = 0;
  await clock.tick(60_000);
  assert.equal(most, 1);
});

for (const status of [401, 403, 404, 405, 302, 410]) {
  test(`${status}: kept, asked again slowly, sent when put right`, async () => {
    const { core, requests, clock, errors } = fake({ random: () => 0, reply: (r) => (r.at < 1_800_000_100_000 ? answer(status, {}) : answer(202)) });
    core.exposure(see(0));
    await clock.tick(90_000);
    assert.ok(requests.length <= 4, `${requests.length} requests in 90 s`);
    assert.equal(errors[0].code, 'delivery');
    assert.equal(core.stats().pending, 1);
    await clock.tick(600_000);
    assert.equal(core.stats().acknowledged, 1);
    assert.equal(new Set(requests.map((r) => r.key)).size, 1);
  });
}

test('400 of a body that broke off on the way: kept and sent again', async () => {
  const { clock, core, requests } = fake({ reply: (_, n) => (n ? answer(202, {}) : answer(400, { code: 'incomplete_body' })) });
  core.exposure(see(0));
  const flushed = core.flush();
  await clock.tick(600_000);
  await flushed;
  assert.deepEqual([core.stats().acknowledged, core.stats().dropped.refused], [1, 0]);
  assert.equal(new Set(requests.map((r) => r.key)).size, 1);
});

for (const status of [400, 415, 422]) {
  test(`${status}: dropped at once and reported with the next batch`, async () => {
    const { core, requests } = fake({ reply: (_, n) => answer(n ? 202 : status, {}) });
    core.exposure(see(0));
    core.exposure(see(1));
    core.event({ name: 'buy', unitId: 'u' });
    await core.flush();
    assert.equal(core.stats().dropped.refused, 3);
    await core.flush();
    const reports = requests[1].body.events;
    assert.deepEqual(reports.map((e) => [e.kind, e.name, e.unit_type, e.value, e.attributes]), [
      ['event', 'sluice.dropped', 'client', 1, { experiment: 'e', variant: 'a', reason: 'refused' }],
      ['event', 'sluice.dropped', 'client', 1, { experiment: 'e', variant: 'b', reason: 'refused' }],
      ['event', 'sluice.dropped', 'client', 1, { event: 'buy', reason: 'refused' }],
    ]);
    assert.equal(core.stats().acknowledged, 0, 'reports are not counted');
    await core.flush();
    assert.equal(requests.length, 2);
  });
}

test('a report that is refused itself is counted again, once a flush', async () => {
  const { core, requests, clock } = fake({ reply: (_, n) => answer(n < 3 ? 400 : 202, {}) });
  core.exposure(see(0));
  await core.flush();
  await core.flush();
  await clock.tick(60_000);
  assert.equal(requests.length, 2, 'no loop');
  await core.flush();
  await core.flush();
  assert.deepEqual(requests.slice(1).map((r) => r.body.events.map((e) => [e.value, e.attributes.reason])), Array(3).fill([[1, 'refused']]));
  assert.equal(new Set(requests.map((r) => r.key)).size, 4);
});

test('events a collector rejects are done', async () => {
  for (const [status, body] of [[202, { batch_id: 'x', accepted: 0, rejected: [{ index: 0 }] }], [422, { code: 'all_rejected', rejected: [{ index: 0 }] }]]) {
    const { core, requests } = fake({ reply: () => answer(status, body) });
    core.exposure(see(0));
    await core.flush();
    await core.flush();
    const s = core.stats();
    assert.deepEqual([requests.length, s.acknowledged, s.rejected, s.dropped.refused], [1, 1, 1, 0]);
  }
});

test('413: halves under keys of their own, down to one event', async () => {
  const { core, requests } = fake({ reply: (r) => (r.body.events.length > 2 || r.events.includes('"u3"') ? answer(413, {}) : answer(202)) });
  for (let i = 0; i < 8; i++) core.exposure(see(i));
  await core.flush();
  const s = core.stats();
  assert.deepEqual([s.acknowledged, s.dropped.too_large, s.pending], [7, 1, 0]);
  assert.equal(new Set(requests.map((r) => r.key)).size, requests.length);
  const k = requests[0].key;
  assert.ok(requests.some((r) => r.key === halfKey(k, 0)) && requests.some((r) => r.key === halfKey(k, 1)));
  assert.match(halfKey(k, 0), /^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-a[0-9a-f]{3}-[0-9a-f]{12}$/);
});

test('half keys do not meet', () => {
  const seen = new Set();
  let keys = ['00000000-0000-4000-8000-000000000000', '00000000-0000-4000-8000-000000000001'];
  for (let depth = 0; depth < 14; depth++) {
    keys = keys.flatMap((k) => [halfKey(k, 0), halfKey(k, 1)]);
    for (const k of keys) seen.add(k);
  }
  assert.equal(seen.size, 2 * (2 ** 15 - 2));
});

test('a full queue drops the newest, counts them and reports them', async () => {
  let up = false;
  const { core, requests, clock, errors } = fake({ queueEvents: 10, batchSize: 5, reply: () => (up ? answer(202) : answer(503)) });
  for (let i = 0; i < 15; i++) core.exposure(see(i));
  assert.equal(core.stats().dropped.queue_full, 5);
  assert.equal(errors.filter((e) => e.code === 'dropped').length, 5);
  await clock.tick(1000);
  up = true;
  await clock.tick(60_000);
  core.exposure(see(15));
  await core.flush();
  const last = requests.at(-1).body.events;
  assert.deepEqual(last.map((e) => e.unit_id === 'u15' || [e.value, e.attributes]), [
    true, [3, { experiment: 'e', variant: 'a', reason: 'queue_full' }], [2, { experiment: 'e', variant: 'b', reason: 'queue_full' }],
  ]);
  const units = new Set(requests.flatMap((r) => r.body.events).filter((e) => e.experiment).map((e) => e.unit_id));
  assert.equal(units.size, 11);
  const s = core.stats();
  assert.equal(s.logged, s.acknowledged + s.dropped.queue_full);
});

test('reports are bounded', async () => {
  const { core, requests } = fake({ queueEvents: 1 });
  core.exposure(see(0));
  for (let i = 0; i < 500; i++) core.exposure(see(i, { experiment: 'x' + i }));
  await core.flush();
  await core.flush();
  const reports = requests.flatMap((r) => r.body.events).filter((e) => e.name);
  assert.equal(reports.length, 101);
  assert.equal(reports.reduce((n, e) => n + e.value, 0), 500);
  assert.deepEqual(reports.at(-1).attributes, { experiment: '*', variant: '*', reason: 'queue_full' });
});

test('a batch expires', async () => {
  const { core, requests, clock } = fake({ maxAgeMs: 3_600_000, reply: (r) => (r.at < 1_800_004_000_000 ? answer(503) : answer(202)) });
  core.exposure(see(0));
  await clock.tick(3_600_000);
  const s = core.stats();
  assert.deepEqual([s.dropped.expired, s.pending], [1, 0]);
  const n = requests.length;
  await clock.tick(500_000);
  assert.equal(requests.length, n);
  await core.flush();
  assert.equal(requests.at(-1).body.events[0].attributes.reason, 'expired');
});

test('an event alone over the limit is dropped when it is logged', async () => {
  const { core } = fake();
  core.exposure(see(0, { attributes: Object.fromEntries(Array.from({ length: 10 }, (_, i) => ['a' + i, 'x'.repeat(60_000)])) }));
  assert.equal(core.stats().dropped.too_large, 1);
});

test('flush and close end in time while a collector is away', async () => {
  const { core, clock, errors } = fake({ reply: () => answer(503) });
  core.exposure(see(0));
  let flushed = false, closed = false;
  void core.flush(3000).then(() => { flushed = true; });
  await clock.tick(2999);
  assert.equal(flushed, false);
  await clock.tick(1);
  assert.equal(flushed, true);
  void core.close(2000).then(() => { closed = true; });
  await clock.tick(2000);
  assert.equal(closed, true);
  assert.equal(core.stats().pending, 1);
  assert.equal(errors.at(-1).count, 1);
  core.exposure(see(1));
  assert.equal(core.stats().invalid, 1);
});

test('nothing is lost or sent under two keys, whatever the answers', async () => {
  let x = 12345;
  const random = () => (x = (x * 1103515245 + 12345) % 2147483648) / 2147483648;
  const stored = new Map();
  const { core, clock } = fake({
    clock: new Clock(), random, endpoints: ['http://a', 'http://b', 'http://c'], batchSize: 7, queueEvents: 1e6, // all endpoints with one limit
    reply: (r) => {
      const dice = random();
      if (r.body.events.length > 4) return answer(413, {});
      if (dice < 0.4) throw new Error('reset before it arrived');
      const before = stored.get(r.key);
      assert.ok(before === undefined || before === r.events, 'one key, one list');
      stored.set(r.key, r.events);
      if (dice < 0.6) throw new Error('reset after it arrived');
      return dice < 0.7 ? answer(503, {}, { 'retry-after': '1' }) : answer(202);
    },
  });
  for (let i = 0; i < 500; i++) core.exposure(see(i));
  void core.flush();
  await clock.tick(3_600_000);
  const s = core.stats();
  assert.deepEqual([s.acknowledged, s.pending], [500, 0]);
  const ids = [...stored.values()].flatMap((e) => JSON.parse(e)).map((e) => e.unit_id);
  assert.equal(ids.length, new Set(ids).size);
  assert.equal(ids.length, 500);
});

test('a batch that no collector takes does not hold the others up, and is tried ever less', async () => {
  for (const status of [500, 403]) {
    const { core, requests, clock } = fake({ batchSize: 1, reply: (r) => answer(r.events.includes('"u0"') ? status : 202, {}) });
    for (let i = 0; i < 60; i++) {
      core.exposure(see(i));
      await clock.tick(60_000);
    }
    const s = core.stats();
    assert.deepEqual([s.acknowledged, s.pending], [59, 1], String(status));
    const poison = requests.filter((r) => r.events.includes('"u0"')).length;
    assert.ok(poison > 4 && poison < 180, `${poison} attempts in an hour`);
  }
});

test('while a request to a failing endpoint is under way, nobody polls', async () => {
  let timers = 0;
  const clock = new Clock();
  const timer = clock.timer;
  clock.timer = (fn, ms) => (timers++, timer(fn, ms));
  const { core, requests } = fake({
    clock, batchSize: 1, requestTimeoutMs: 10_000, endpoints: ['http://a', 'http://b'],
    reply: (r, n) => (n < 4 || r.url.startsWith('http://b') ? answer(503) : new Promise((_, no) => r.init.signal.addEventListener('abort', () => no(new Error('aborted'))))),
  });
  for (let i = 0; i < 4; i++) core.exposure(see(i));
  await clock.tick(5000); // a hangs
  timers = 0;
  const before = requests.length;
  await clock.tick(4000);
  assert.ok(timers < 50, `${timers} timers in 4 s`);
  assert.ok(requests.length > before && requests.slice(before).every((r) => r.url.startsWith('http://b')), 'the other endpoint is asked when its wait is over');
});

test('200 without a batch_id is no receipt', async () => {
  for (const body of [{}, [], { ok: true }, { batch_id: '' }]) {
    const { core, requests, clock } = fake({ reply: (_, n) => (n ? answer(202) : answer(200, body)) });
    core.exposure(see(0));
    void core.flush();
    await clock.tick(1000);
    assert.equal(requests.length, 2);
    assert.equal(core.stats().acknowledged, 1);
  }
});

test('a Retry-After beyond a day counts as a day', async () => {
  for (const after of ['1800000000', '1e400', new Date(1_900_000_000_000).toUTCString()]) {
    const { core, clock } = fake({ reply: (_, n) => (n ? answer(202) : answer(429, {}, { 'retry-after': after })) });
    core.exposure(see(0));
    await clock.tick(86_400_000 - 1);
    assert.equal(core.stats().acknowledged, 0);
    await clock.tick(2000);
    assert.equal(core.stats().acknowledged, 1);
  }
});

test('the queue is bounded in bytes too', async () => {
  const { core, clock } = fake({ queueEvents: 100, reply: () => answer(503) });
  for (let i = 0; i < 50; i++) core.exposure(see(i, { attributes: { a: 'x'.repeat(40_000) } }));
  const s = core.stats();
  assert.ok(s.pending >= 9 && s.pending <= 11, `${s.pending} of 40 KB are held`);
  assert.equal(s.pending + s.dropped.queue_full, 50);
  await clock.tick(1000);
  assert.equal(core.stats().pending, s.pending);
});

test('close reports what it had to drop itself', async () => {
  const { core, requests } = fake({ reply: (_, n) => answer(n ? 202 : 400, {}) });
  core.exposure(see(0));
  await core.close();
  assert.equal(core.stats().dropped.refused, 1);
  assert.deepEqual(requests.slice(1).map((r) => r.body.events.map((e) => [e.name, e.value])), [[['sluice.dropped', 1]]]);
});

test('halves that found no room get the room of the whole', async () => {
  const kept = new Map();
  const store = {
    spills: false, adopt: () => [], load: (b) => b.events, leave() {},
    put: (b) => (kept.has(b.key) || kept.size < 1 ? !!kept.set(b.key, b.events) : false),
    remove: (b) => void kept.delete(b.key),
  };
  const { core } = fake({ store, maxInFlight: 1, reply: (_, n) => (n ? new Promise(() => {}) : answer(413, {})) });
  core.exposure(see(0));
  core.exposure(see(1));
  void core.flush();
  await rest();
  assert.equal(kept.size, 1);
  assert.equal(core.stats().stored, 1);
});

test('reports are bounded in memory while collectors are away', async () => {
  let up = false;
  const { core, requests, clock } = fake({ queueEvents: 5, reply: () => (up ? answer(202) : answer(503)) });
  for (let i = 0; i < 500; i++) {
    core.exposure(see(i));
    void core.flush(1); // as a function that is called once for each request does
    await clock.tick(1);
  }
  up = true;
  requests.length = 0;
  await clock.tick(60_000);
  await core.flush();
  await core.flush();
  const sent = new Map(requests.map((r) => [r.key, r.body.events]));
  const reports = [...sent.values()].flat().filter((e) => e.name);
  assert.ok(reports.length <= 110, `${reports.length} reports`);
  assert.equal(reports.reduce((n, e) => n + e.value, 0), core.stats().dropped.queue_full);
});
