// The published Node build, a real HTTP server and a real directory.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'node:test';
import { createLogger } from '@sluice/logger';
import { DirStore } from '../build/dirstore.js';
import { see, serve, uuid } from './kit.mjs';

const dirOf = (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'sluice-js-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
};
const batches = (dir) => readdirSync(dir).filter((f) => f.endsWith('.json'));
const fast = { key: 'k', retryBaseMs: 5, retryCapMs: 20 };
const until = async (ok) => {
  while (!ok()) await new Promise((done) => setTimeout(done, 5));
};

test('on the wire', async (t) => {
  const s = await serve();
  t.after(s.close);
  const logger = createLogger({ ...fast, endpoints: s.url + '/' });
  logger.exposure(see(0));
  await logger.close();
  const [r] = s.requests;
  assert.deepEqual([r.method, r.url, r.headers.authorization, r.headers['content-type']], ['POST', '/v1/exposures', 'Bearer k', 'application/json']);
  assert.match(r.key, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  assert.deepEqual(Object.keys(r.body), ['events', 'sent_at', 'sdk']);
  assert.deepEqual(r.body.sdk, { name: 'sluice-js', version: JSON.parse(readFileSync('package.json')).version });
});

test('hang-ups, refused connections and redirects', async (t) => {
  const gone = await serve();
  await gone.close();
  const s = await serve((_, n) => [[0], [503], [302, { location: '/v1/exposures' }], [202]][n]);
  t.after(s.close);
  const logger = createLogger({ ...fast, endpoints: [gone.url, s.url] });
  logger.exposure(see(0));
  void logger.flush(); // close ends it
  await until(() => s.requests.length === 3);
  assert.equal(logger.stats().acknowledged, 0, 'a redirect is no receipt');
  assert.equal(new Set(s.requests.map((r) => r.key)).size, 1);
  await logger.close(1);
});

test('across a restart: the same key and events, and the file goes when acknowledged', async (t) => {
  const dir = dirOf(t);
  let up = false;
  const s = await serve(() => (up ? [202] : [503]));
  t.after(s.close);
  const options = { ...fast, endpoints: s.url, persist: { dir } };
  const first = createLogger({ ...options, batchSize: 2 });
  for (let i = 0; i < 4; i++) first.exposure(see(i, { attributes: { 10: 'a', 2: 1e21, ü: '\u2028"' } }));
  await first.close();
  assert.equal(batches(dir).length, 2);
  assert.deepEqual([first.stats().pending, first.stats().stored], [4, 4]);
  up = true;
  const second = createLogger(options);
  await second.flush();
  await second.close();
  assert.deepEqual(readdirSync(dir), []);
  assert.deepEqual([second.stats().recovered, second.stats().acknowledged], [4, 4]);
  const lists = new Map();
  for (const r of s.requests) lists.set(r.key, (lists.get(r.key) ?? new Set()).add(r.text.slice(0, r.text.indexOf(',"sent_at"'))));
  assert.equal(lists.size, 2);
  for (const l of lists.values()) assert.equal(l.size, 1, 'byte for byte');
});

test('kill -9: what was written is sent by the next process', { timeout: 60_000 }, async (t) => {
  const dir = dirOf(t);
  let up = false;
  const s = await serve(() => (up ? [202] : [503]));
  t.after(s.close);
  const child = spawn(process.execPath, ['drive.mjs', s.url, 'k', 'run', '300', '1000', dir], { stdio: 'ignore' });
  await until(() => batches(dir).length >= 3);
  child.kill('SIGKILL');
  await once(child, 'exit');
  const kept = batches(dir).reduce((n, f) => n + Number(f.split('.')[1]), 0);
  up = true;
  const next = createLogger({ ...fast, endpoints: s.url, persist: { dir } });
  await next.flush();
  await next.close();
  assert.ok(kept >= 300);
  assert.deepEqual([next.stats().acknowledged, batches(dir).length], [kept, 0]);
});

test('two loggers share a directory', async (t) => {
  const dir = dirOf(t);
  const s = await serve();
  t.after(s.close);
  const two = [0, 1].map(() => createLogger({ ...fast, endpoints: s.url, persist: { dir }, batchSize: 3 }));
  for (let i = 0; i < 50; i++) two[i % 2].exposure(see(i));
  await Promise.all(two.map((l) => l.close()));
  const lists = new Map(s.requests.map((r) => [r.key, r.body.events]));
  assert.equal([...lists.values()].flat().length, 50);
  assert.deepEqual(readdirSync(dir), []);
});

test('another write key does not send them, the same name does', async (t) => {
  const dir = dirOf(t);
  const s = await serve((r) => (r.headers.authorization === 'Bearer old' ? [401] : [202]));
  t.after(s.close);
  for (const name of [undefined, 'web']) {
    const persist = name ? { dir, name } : { dir };
    const a = createLogger({ ...fast, key: 'old', endpoints: s.url, persist });
    a.exposure(see(0));
    await a.close();
    const b = createLogger({ ...fast, key: 'new', endpoints: s.url, persist });
    await b.flush();
    await b.close();
    assert.equal(b.stats().acknowledged, name ? 1 : 0);
  }
});

test('a damaged file is set aside', async (t) => {
  const dir = dirOf(t);
  const s = await serve();
  t.after(s.close);
  const at = Date.now().toString(36);
  const damage = ['', '{"v":1,', 'null', '{"v":1,"key":"x","created":1,"events":[{}]}', '\0\0\0'];
  const name = 'n';
  damage.forEach((d, i) => writeFileSync(join(dir, `${name}~gone~${at}.1.00000000-0000-4000-8000-00000000000${i}.json`), d));
  writeFileSync(join(dir, `${name}~gone~${at}.1.00000000-0000-4000-8000-000000000009.json.tmp`), 'half');
  writeFileSync(join(dir, 'mine.txt'), 'not ours');
  const errors = [];
  const logger = createLogger({ ...fast, endpoints: s.url, persist: { dir, name }, onError: (e) => errors.push(e.code) });
  logger.exposure(see(0));
  await logger.close();
  assert.equal(s.requests.length, 1);
  assert.equal(errors.filter((c) => c === 'storage').length, damage.length);
  assert.equal(logger.stats().pending, 0);
  assert.deepEqual(readdirSync(dir).filter((f) => !f.endsWith('.bad')), ['mine.txt']);
});

test('a directory that is full or cannot be made: memory only', async (t) => {
  const dir = dirOf(t);
  writeFileSync(join(dir, 'file'), '');
  const s = await serve((_, n) => (n < 2 ? [503] : [202]));
  t.after(s.close);
  for (const persist of [{ dir, maxBytes: 10 }, { dir: join(dir, 'file', 'x') }]) {
    const errors = [];
    const logger = createLogger({ ...fast, endpoints: s.url, persist, onError: (e) => errors.push(e.code) });
    logger.exposure(see(0));
    await logger.close();
    assert.ok(errors.includes('storage'));
    assert.equal(logger.stats().acknowledged, 1);
  }
});

test('a long outage goes to disk, not to memory', async (t) => {
  const dir = dirOf(t);
  let up = false;
  const s = await serve(() => (up ? [202] : [503]));
  t.after(s.close);
  const logger = createLogger({ ...fast, endpoints: s.url, persist: { dir }, batchSize: 10, queueEvents: 100 });
  for (let i = 0; i < 50; i++) {
    for (let j = 0; j < 10; j++) logger.exposure(see(i * 10 + j));
    await until(() => batches(dir).length === i + 1);
    await new Promise((done) => setTimeout(done, 2));
  }
  assert.equal(logger.stats().dropped.queue_full, 0);
  up = true;
  await until(() => logger.stats().pending === 0);
  await logger.close();
  assert.equal(logger.stats().acknowledged, 500);
});

test('a batch that another process took over is not reported as lost', async (t) => {
  const dir = dirOf(t);
  const s = await serve(() => [503]);
  t.after(s.close);
  const logger = createLogger({ ...fast, endpoints: s.url, persist: { dir } });
  logger.exposure(see(0));
  await logger.flush();
  for (const f of batches(dir)) rmSync(join(dir, f));
  await until(() => logger.stats().handedOver === 1);
  assert.equal(logger.stats().pending, 0);
  await logger.close();
});

test('whose owner has gone quiet is taken over, whose is alive is not', async (t) => {
  const dir = dirOf(t);
  const [a, b] = [uuid(), uuid()].map((user) => new DirStore(dir, 'n', user, 1e6));
  const now = Date.now();
  assert.equal(await a.put({ key: uuid(), created: now, count: 1, events: ['{"event_id":"x"}'] }), true);
  assert.deepEqual(await b.adopt(now), []);
  await a.leave();
  const [got] = await b.adopt(now);
  assert.deepEqual(await b.load(got), ['{"event_id":"x"}']);
  await b.remove(got);
  await b.leave();
  assert.deepEqual(readdirSync(dir), []);
});

test('another module or thread of this process is alive; a process before us with our pid is not', async (t) => {
  const dir = dirOf(t);
  const store = new DirStore(dir, 'n', uuid(), 1e6);
  const now = Date.now();
  const batch = { key: uuid(), created: now, count: 1, events: ['{"event_id":"x"}'] };
  const other = uuid(); // known to the other module only
  const alive = join(dir, `n~${other}~alive`);
  writeFileSync(alive, `${hostname()} ${process.pid}`);
  writeFileSync(join(dir, `n~${other}~${now.toString(36)}.1.${batch.key}.json`), '');
  assert.deepEqual(await store.adopt(now), []);
  const began = (now - process.uptime() * 1000 - 5000) / 1000;
  utimesSync(alive, began, began);
  assert.equal((await store.adopt(now)).length, 1);
  await store.leave();
});

test('a file that cannot be read now is not given up', async (t) => {
  const dir = dirOf(t);
  const store = Object.assign(new DirStore(dir, 'n', uuid(), 1e6), { damaged() {} });
  const batch = { key: uuid(), created: Date.now(), count: 1, events: ['{"event_id":"x"}'] };
  await store.put(batch);
  const path = join(dir, batches(dir)[0]);
  renameSync(path, path + '.aside');
  mkdirSync(path); // reading it fails, and not with ENOENT
  const got = store.load({ ...batch, events: undefined });
  const alive = setInterval(() => {}, 1000); // as flush does
  t.after(() => clearInterval(alive));
  setTimeout(() => {
    rmSync(path, { recursive: true });
    renameSync(path + '.aside', path);
  }, 20);
  assert.deepEqual(await got, batch.events);
  await store.leave();
});

test('no options make it throw', () => {
  for (const persist of [{ dir: '/nowhere/x', name: '\ud800' }, { dir: 7 }, { dir: '\0' }]) createLogger({ ...fast, endpoints: 'http://127.0.0.1:1', persist });
  const real = globalThis.setTimeout;
  globalThis.setTimeout = () => 1; // as in a page
  try {
    createLogger({ ...fast, endpoints: 'http://127.0.0.1:1' }).exposure(see(0));
  } finally {
    globalThis.setTimeout = real;
  }
});

test('what lay there for a month is reported as expired, of another name it is forgotten', async (t) => {
  const dir = dirOf(t);
  const s = await serve();
  t.after(s.close);
  const created = Date.now() - 30 * 86_400_000;
  for (const name of ['mine', 'theirs']) {
    const key = uuid();
    const path = join(dir, `${name}~gone~${created.toString(36)}.1.${key}.json`);
    const e = { experiment: 'e', variant: 'a', unit_id: 'u', time: created, event_id: 'x' };
    writeFileSync(path, `{"v":1,"key":"${key}","created":${created},"events":[${JSON.stringify(e)}]}`);
    utimesSync(path, created / 1000, created / 1000);
  }
  const logger = createLogger({ ...fast, endpoints: s.url, persist: { dir, name: 'mine' } });
  await until(() => logger.stats().dropped.expired === 1);
  await logger.close();
  assert.deepEqual(s.requests.map((r) => r.body.events.map((x) => [x.name, x.attributes.reason])), [[['sluice.dropped', 'expired']]]);
  assert.deepEqual(readdirSync(dir), []);
});

test('an idle logger does not keep a process alive, flush does', { timeout: 30_000 }, async (t) => {
  const s = await serve((_, n) => (n ? [202] : [503]));
  t.after(s.close);
  const code = `import { createLogger } from './dist/node.js';
    const logger = createLogger({ endpoints: '${s.url}', key: 'k', retryBaseMs: 200 });
    logger.exposure({ experiment: 'e', variant: 'v', unitId: 'u' });
    await logger.flush();
    console.log(logger.stats().acknowledged);`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', code], { stdio: ['ignore', 'pipe', 'inherit'] });
  let out = '';
  child.stdout.on('data', (d) => { out += d; });
  const [status] = await once(child, 'close');
  assert.deepEqual([status, out], [0, '1\n']);
});

test('require works', () => {
  const require = createRequire(import.meta.url);
  assert.equal(typeof require('@sluice/logger').createLogger, 'function');
  assert.equal(typeof require('@sluice/logger/openfeature').exposureHook, 'function');
});
