// Tabs of one origin that come, hide, freeze, crash and go, in every kind of
// weather: a seeded walk. What was written down arrives, nothing twice.

import assert from 'node:assert/strict';
import test from 'node:test';
import { Core } from '../build/core.js';
import { LocalStore } from '../build/localstore.js';
import { answer, Clock, FakeStorage, see, uuid } from './kit.mjs';

/** One walk. Returns what the collectors have, by key, and what had to arrive. */
async function walk(seed) {
  let x = seed * 7919;
  const random = () => (x = (x * 1103515245 + 12345) % 2147483648) / 2147483648;
  const upTo = (n) => Math.floor(random() * n);
  const clock = new Clock();
  const storage = new FakeStorage();
  const got = new Map();
  let bad = 0.3; // share of requests that go wrong
  const collector = (key, events) => {
    if (events.length > 6) return answer(413, {});
    const dice = random();
    if (dice < bad / 3) throw new Error('reset before it arrived');
    const text = JSON.stringify(events);
    assert.equal(got.get(key) ?? text, text, 'one key, one list');
    got.set(key, text);
    if (dice < bad / 1.5) throw new Error('reset after it arrived');
    return dice < bad ? answer(503) : answer(202);
  };
  const beacon = (url, body) => {
    if (random() < 0.3) return false;
    try {
      if (random() < 0.5) collector(new URL(url).searchParams.get('idempotency_key'), JSON.parse(body).events);
    } catch {
      // Nobody learns of it.
    }
    return true;
  };
  const tabs = [];
  const open = () => {
    const tab = { dead: false, logged: [] };
    tab.store = new LocalStore(storage, 'n', uuid(), 1e6, () => clock.now);
    tab.core = new Core({ endpoints: ['http://a', 'http://b'], key: 'k', batchSize: 10 }, {
      sdk: '{}', random, uuid, now: () => clock.now, maxBatchBytes: 50_000, store: tab.store,
      timer: (fn, ms) => clock.timer(() => tab.dead || fn(), ms),
      async fetch(_, init) {
        const r = collector(init.headers['idempotency-key'], JSON.parse(init.body).events);
        return tab.dead ? new Promise(() => {}) : r;
      },
    });
    tabs.push(tab);
  };
  const due = new Set();
  const end = (tab) => {
    tab.dead = true;
    tabs.splice(tabs.indexOf(tab), 1);
  };
  const written = (tab, before) => tab.logged.forEach((l) => l.at <= before && due.add(l.unit));
  let units = 0;
  for (let step = 0; step < 120; step++) {
    const tab = tabs[upTo(tabs.length)];
    const dice = random();
    if (!tab || (dice > 0.9 && tabs.length < 4)) open();
    else if (dice < 0.5) {
      for (let i = upTo(15); i >= 0; i--) {
        tab.core.exposure(see(++units));
        tab.logged.push({ unit: 'u' + units, at: clock.now });
      }
    } else if (dice < 0.6) {
      tab.core.hide(beacon);
      written(tab, clock.now);
    } else if (dice < 0.66) { // left
      tab.core.hide(beacon);
      tab.store.leave();
      written(tab, clock.now);
      end(tab);
    } else if (dice < 0.71) { // crashed
      written(tab, clock.now - 1000);
      end(tab);
    } else if (dice < 0.75) tab.core.resume();
    else await clock.tick(upTo(random() < 0.2 ? 150_000 : 3000));
    if (random() < 0.3) bad = random();
  }
  bad = 0;
  open();
  for (const tab of tabs) {
    written(tab, clock.now);
    void tab.core.flush();
  }
  await clock.tick(400_000);
  for (const tab of tabs) await tab.core.close();
  const left = [...storage.map.keys()].filter((k) => !k.endsWith('/alive'));
  return { arrived: [...got.values()].flatMap((t) => JSON.parse(t)).filter((e) => e.experiment).map((e) => e.unit_id), due, left };
}

for (let seed = 1; seed <= 20; seed++) {
  test(`tabs, walk ${seed}`, async () => {
    const { arrived, due, left } = await walk(seed);
    const once = new Set(arrived);
    assert.equal(once.size, arrived.length, 'nothing twice');
    assert.deepEqual([...due].filter((u) => !once.has(u)), [], 'nothing lost that was written down');
    assert.deepEqual(left, []);
  });
}
