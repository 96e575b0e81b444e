// The published browser builds among faked globals of a page; a real one is tested
// elsewhere. Each import with its own query is a page of its own.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';
import vm from 'node:vm';
import { gzipSync } from 'node:zlib';
import { LocalStore } from '../build/localstore.js';
import { FakeStorage, rest, see, uuid } from './kit.mjs';
import { createLogger } from '../dist/browser.js';

for (const file of ['browser.js', 'sluice.global.js']) {
  test(`${file} is under 6 KiB gzipped`, () => {
    const size = gzipSync(readFileSync('dist/' + file), { level: 9 }).length;
    assert.ok(size < 6 * 1024, `${size} bytes`);
  });
}

const OK = { status: 202, body: { batch_id: 'x', accepted: 1, rejected: [] } };

/** A page: its globals are put in place, and taken away after the test. */
function page(t, { storage = new FakeStorage(), reply = () => OK, beacon = () => true } = {}) {
  const target = new EventTarget();
  const document = Object.assign(new EventTarget(), { visibilityState: 'visible' });
  const requests = [], beacons = [];
  const globals = {
    document, localStorage: storage,
    navigator: { sendBeacon: beacon && ((url, body) => beacon(url, body) && (beacons.push({ url: new URL(url), body: JSON.parse(body), text: body }), true)) },
    addEventListener: target.addEventListener.bind(target), removeEventListener: target.removeEventListener.bind(target),
    fetch: async (url, init) => {
      const r = { url, init, key: init.headers?.['idempotency-key'], body: JSON.parse(init.body) };
      requests.push(r);
      const cut = new Promise((_, no) => init.signal?.addEventListener('abort', () => no(new Error('aborted'))));
      const a = await Promise.race([reply(r, requests.length - 1), cut]);
      if (!a) throw new TypeError('Failed to fetch');
      return new Response(JSON.stringify(a.body ?? {}), { status: a.status, headers: a.headers });
    },
  };
  const before = new Map();
  for (const [k, value] of Object.entries(globals)) {
    before.set(k, Object.getOwnPropertyDescriptor(globalThis, k));
    Object.defineProperty(globalThis, k, { value, configurable: true, writable: true });
  }
  // What listens on the global object must be reached by dispatch.
  const own = globalThis.dispatchEvent;
  globalThis.dispatchEvent = target.dispatchEvent.bind(target);
  const loggers = [];
  t.after(async () => {
    for (const l of loggers) await l.close(0);
    globalThis.dispatchEvent = own;
    for (const [k, d] of before) if (d) Object.defineProperty(globalThis, k, d); else delete globalThis[k];
  });
  return {
    requests, beacons, storage,
    logger: (options) => {
      const l = createLogger({ endpoints: 'https://a', key: 'k', ...options });
      loggers.push(l);
      return l;
    },
    hide() {
      document.visibilityState = 'hidden';
      document.dispatchEvent(new Event('visibilitychange'));
    },
    leave() {
      this.hide();
      target.dispatchEvent(new Event('pagehide'));
    },
    show() {
      document.visibilityState = 'visible';
      target.dispatchEvent(new Event('pageshow'));
    },
  };
}
const kept = (s) => [...s.map.keys()].filter((k) => !k.endsWith('/alive'));

test('hidden: a beacon with key and idempotency key in the URL; the batch stays and is sent again with both the same', async (t) => {
  const storage = new FakeStorage();
  const p = page(t, { storage });
  const a = p.logger({ key: 'k&y' });
  a.exposure(see(0));
  a.exposure(see(1));
  p.leave();
  assert.equal(p.beacons.length, 1, 'visibilitychange and pagehide: one beacon');
  const { url, body, text } = p.beacons[0];
  assert.equal(url.origin + url.pathname, 'https://a/v1/exposures');
  assert.equal(url.searchParams.get('k'), 'k&y');
  assert.match(url.searchParams.get('idempotency_key'), /^[0-9a-f-]{36}$/);
  assert.equal(body.events.length, 2);
  assert.ok(text.includes('"sent_at"'));
  assert.equal(kept(storage).length, 1);
  assert.equal(a.stats().pending, 2);
  await rest();

  const b = p.logger({ key: 'k&y' }); // the next page
  await b.flush();
  const again = p.requests.at(-1);
  assert.equal(again.key, url.searchParams.get('idempotency_key'));
  assert.deepEqual(again.body.events, body.events);
  assert.deepEqual([b.stats().recovered, b.stats().acknowledged], [2, 2]);
  assert.deepEqual(kept(storage), []);
});

test('a batch in flight is in storage, and goes by beacon too', async (t) => {
  const p = page(t, { reply: () => new Promise(() => {}) });
  const a = p.logger({ batchSize: 1 });
  a.exposure(see(0));
  await rest();
  assert.equal(p.requests.length, 1);
  assert.equal(kept(p.storage).length, 1);
  p.hide();
  assert.equal(p.beacons[0].url.searchParams.get('idempotency_key'), p.requests[0].key);
  assert.deepEqual(p.beacons[0].body.events, p.requests[0].body.events);
});

test('beacons are at most 60 KiB', async (t) => {
  const p = page(t);
  const a = p.logger({ batchSize: 10_000 });
  for (let i = 0; i < 1500; i++) a.exposure(see(i, { attributes: { ü: 'ü'.repeat(40) } }));
  p.hide();
  assert.ok(p.beacons.length + p.requests.length >= 5);
  for (const b of p.beacons) assert.ok(Buffer.byteLength(b.text) <= 60 * 1024);
  const byKey = new Map();
  for (const b of p.beacons) byKey.set(b.url.searchParams.get('idempotency_key'), b.body.events);
  for (const r of p.requests) byKey.set(r.key, r.body.events);
  assert.equal([...byKey.values()].flat().length, 1500);
});

test('a refused or missing beacon: a fetch that outlives the page; else storage', async (t) => {
  for (const beacon of [() => false, null, () => { throw new Error('no'); }]) {
    await t.test(String(beacon), async (t) => {
      const p = page(t, { beacon, reply: () => undefined });
      const a = p.logger();
      a.exposure(see(0));
      p.hide();
      await rest();
      assert.equal(kept(p.storage).length, 1);
      const last = p.requests.find((r) => r.init.keepalive);
      if (beacon?.toString().includes('throw')) assert.equal(last, undefined);
      else assert.match(last.url, /\?k=k&idempotency_key=/);
    });
  }
});

test('back from bfcache: goes on', async (t) => {
  const p = page(t);
  const a = p.logger();
  a.exposure(see(0));
  p.leave();
  await rest();
  p.show();
  a.exposure(see(1));
  await rest();
  void a.flush();
  await rest();
  assert.ok(p.requests.some((r) => r.body.events.some((e) => e.unit_id === 'u1')));
  assert.ok([...p.storage.map.keys()].length <= 2);
});

test('storage that is full, forbidden or corrupt costs no event', async (t) => {
  for (const [what, storage] of [
    ['full', new FakeStorage(50)],
    ['throws', { get length() { throw new Error('no'); }, key() {}, getItem() { throw new Error('no'); }, setItem() { throw new Error('no'); }, removeItem() { throw new Error('no'); } }],
    ['missing', undefined],
    ['null', null],
  ]) {
    await t.test(what, async (t) => {
      const p = page(t, { storage: storage ?? null });
      const errors = [];
      const a = p.logger({ onError: (e) => errors.push(e.code) });
      a.exposure(see(0));
      await a.flush();
      assert.equal(a.stats().acknowledged, 1);
      assert.ok(errors.every((c) => c === 'storage'));
    });
  }
});

test('corrupt batches are removed and told, foreign keys are left alone', async (t) => {
  const storage = new FakeStorage();
  const at = Date.now().toString(36);
  const key = '00000000-0000-4000-8000-000000000000';
  const bad = ['', '{', 'null', '[]', `{"v":2,"key":"${key}","events":[{"event_id":"x"}]}`, `{"v":1,"key":"other","events":[{"event_id":"x"}]}`, `{"v":1,"key":"${key}","events":[]}`, `{"v":1,"key":"${key}","events":[null]}`];
  bad.forEach((b, i) => storage.setItem(`sluice1/n/gone${i}/${at}.1.${key}`, b));
  storage.setItem('sluice1/n/gone/nonsense', 'x');
  storage.setItem(`sluice1/other/gone/${at}.1.${key}`, 'not read');
  storage.setItem('cart', 'theirs');
  const p = page(t, { storage });
  const errors = [];
  const a = p.logger({ persist: { name: 'n' }, onError: (e) => errors.push(e.code) });
  await a.flush();
  assert.deepEqual(errors, Array(bad.length).fill('storage'));
  assert.deepEqual([...storage.map.keys()], [`sluice1/other/gone/${at}.1.${key}`, 'cart']);
  assert.equal(p.requests.length, 0);
});

test('two tabs: neither takes what the other, alive, has; a crashed one is taken over', async () => {
  const s = new FakeStorage();
  let now = Date.now();
  const [a, b] = [uuid(), uuid()].map((user) => Object.assign(new LocalStore(s, 'n', user, 1e6, () => now), { damaged: assert.fail }));
  const batch = { key: uuid(), created: now, count: 1, events: ['{"event_id":"x"}'] };
  assert.equal(a.put(batch), true);
  assert.deepEqual(b.adopt(now, false), []);
  now += 60_000;
  a.adopt(now, true); // a hidden tab's timers run once a minute
  now += 60_000;
  assert.deepEqual(b.adopt(now, false), []);
  now += 100_000;
  assert.deepEqual(b.adopt(now, false), [batch]);
  assert.deepEqual(a.adopt(now, true), []);
  assert.equal([...s.map.keys()].filter((k) => k.includes(batch.key)).length, 1);
});

test('what the host cleared from storage is there again when the page is hidden', async (t) => {
  const p = page(t, { reply: () => new Promise(() => {}), beacon: () => { throw new Error('no'); } });
  const a = p.logger({ batchSize: 1 });
  a.exposure(see(0));
  await rest();
  p.storage.map.clear(); // the user logs out
  p.hide();
  assert.equal(kept(p.storage).length, 1);
});

test('storage that is nearly full keeps what it has when the page is hidden', async (t) => {
  const p = page(t, { reply: () => undefined });
  const errors = [];
  const a = p.logger({ batchSize: 1, persist: { maxChars: 500 }, onError: (e) => errors.push(e.message) });
  a.exposure(see(0));
  await rest();
  errors.length = 0;
  p.leave();
  assert.deepEqual(errors, []);
  assert.deepEqual([kept(p.storage).length, a.stats().stored], [1, 1]);
});

test('a crash while a batch is taken over leaves it in storage', () => {
  const s = new FakeStorage();
  const now = Date.now();
  const [a, b] = [uuid(), uuid()].map((user) => Object.assign(new LocalStore(s, 'n', user, 1e6, () => now), { damaged() {} }));
  const batch = { key: uuid(), created: now, count: 1, events: ['{"event_id":"x"}'] };
  a.put(batch);
  a.leave();
  const holds = () => [...s.map.keys()].some((k) => k.endsWith(batch.key));
  for (const name of ['setItem', 'removeItem']) {
    const real = FakeStorage.prototype[name];
    s[name] = (...args) => { real.apply(s, args); assert.ok(holds(), 'after ' + name); };
  }
  b.adopt(now, false);
  s.quota = 0; // no room for both
  for (const name of ['setItem', 'removeItem']) delete s[name];
  assert.ok(holds());
});

test('a page that put a finer clock in place loses nothing', async (t) => {
  const real = Date.now;
  t.after(() => { Date.now = real; });
  Date.now = () => real() + 0.25;
  const p = page(t, { beacon: () => { throw new Error('no'); } });
  const a = p.logger();
  a.exposure(see(0));
  p.leave();
  const b = p.logger();
  await b.flush();
  assert.equal(b.stats().recovered, 1);
});

test('what a user comes back to after a month is reported as expired, not sent', async (t) => {
  const storage = new FakeStorage();
  const created = Date.now() - 30 * 86_400_000;
  const key = uuid();
  const e = { experiment: 'e', variant: 'a', unit_id: 'u', time: created, event_id: 'x' };
  storage.setItem(`sluice1/n/gone/${created.toString(36)}.1.${key}`, `{"v":1,"key":"${key}","created":${created},"events":[${JSON.stringify(e)}]}`);
  const p = page(t, { storage });
  const a = p.logger({ persist: { name: 'n' } });
  await rest();
  await a.flush();
  assert.equal(a.stats().dropped.expired, 1);
  assert.deepEqual(p.requests.map((r) => r.body.events.map((x) => [x.name, x.attributes.reason])), [[['sluice.dropped', 'expired']]]);
  assert.deepEqual(kept(storage), []);
});

test('hiding a page with many batches in storage reads it once, not once for each', async (t) => {
  const p = page(t, { reply: () => undefined, beacon: () => true });
  const a = p.logger({ batchSize: 1 });
  for (let i = 0; i < 300; i++) a.exposure(see(i));
  await rest();
  let reads = 0;
  p.storage.getItem = (k) => (reads++, p.storage.map.get(k) ?? null);
  p.hide();
  assert.equal(kept(p.storage).length, 300);
  assert.ok(reads < 1000, `${reads} reads`);
});

test('storage is bounded', () => {
  const s = new FakeStorage();
  const store = new LocalStore(s, 'n', uuid(), 2000, Date.now);
  let n = 0;
  while (store.put({ key: uuid(), created: Date.now(), count: 1, events: ['{"event_id":"' + 'x'.repeat(100) + '"}'] })) n++;
  let used = 0;
  for (const [k, v] of s.map) used += k.length + v.length;
  assert.ok(n > 3 && used <= 2100, `${n} batches, ${used} characters`);
});

test('without a document (a server renders the page) it works, in memory', async (t) => {
  const p = page(t);
  delete globalThis.document;
  Object.defineProperty(globalThis, 'localStorage', { value: undefined, configurable: true });
  const a = p.logger();
  a.exposure(see(0));
  await a.flush();
  assert.equal(a.stats().acknowledged, 1);
});

test('the global build makes SluiceLogger.createLogger', () => {
  const context = vm.createContext({ TextEncoder, URL, setTimeout, clearTimeout, crypto });
  vm.runInContext(readFileSync('dist/sluice.global.js', 'utf8'), context);
  assert.equal(typeof context.SluiceLogger.createLogger, 'function');
});
