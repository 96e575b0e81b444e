// What the tests share: a clock that only they move, a platform of fakes, a real
// HTTP server with prepared answers, and an in-memory localStorage.

import { createServer } from 'node:http';
import { Core } from '../build/core.js';

/** Lets promises, and the I/O of fakes, come to rest. */
export const rest = async () => {
  for (let i = 0; i < 20; i++) await new Promise((done) => setImmediate(done));
};

export class Clock {
  now = 1_800_000_000_000;
  #timers = new Map();
  #next = 0;
  timer = (fn, ms) => {
    const id = this.#next++;
    this.#timers.set(id, { at: this.now + ms, fn });
    return () => this.#timers.delete(id);
  };
  /** Moves on by ms, timer by timer. */
  async tick(ms) {
    const end = this.now + ms;
    await rest();
    for (;;) {
      let first;
      for (const [id, t] of this.#timers) if (t.at <= end && (!first || t.at < first.at)) first = { id, ...t };
      if (!first) break;
      this.#timers.delete(first.id);
      this.now = Math.max(this.now, first.at);
      first.fn();
      await rest();
    }
    this.now = end;
  }
}

export const answer = (status, body = { batch_id: 'x', accepted: 1, rejected: [], durable: 'kafka', duplicate: false }, headers = {}) =>
  new Response(typeof body === 'string' ? body : JSON.stringify(body), { status, headers });

let serial = 0;
export const uuid = () => `00000000-0000-4000-8000-${String(serial++).padStart(12, '0')}`;

/** A Core among fakes. reply(request, n) returns a Response, or throws. */
export function fake({ reply = () => answer(202), clock = new Clock(), random = () => 1, store, maxBatchBytes = Infinity, ...options } = {}) {
  const requests = [];
  const errors = [];
  const core = new Core({ endpoints: 'http://a', key: 'k', onError: (e) => errors.push(e), ...options }, {
    sdk: '{"name":"sluice-js","version":"test"}',
    async fetch(url, init) {
      const body = JSON.parse(init.body);
      const r = { url, key: init.headers['idempotency-key'], at: clock.now, body, events: JSON.stringify(body.events), init };
      requests.push(r);
      const a = reply(r, requests.length - 1);
      return a instanceof Promise ? a : a.clone();
    },
    now: () => clock.now, random, uuid, timer: clock.timer, maxBatchBytes, store,
  });
  return { core, requests, errors, clock };
}

export const see = (i, more = {}) => ({ experiment: 'e', variant: i % 2 ? 'b' : 'a', unitId: 'u' + i, ...more });

/** A server that answers as told, and remembers what came. */
export async function serve(reply = () => [202]) {
  const requests = [];
  const server = createServer((req, res) => {
    const parts = [];
    req.on('data', (d) => parts.push(d));
    req.on('end', () => {
      const text = Buffer.concat(parts).toString();
      const r = { method: req.method, url: req.url, headers: req.headers, key: req.headers['idempotency-key'], text, body: JSON.parse(text) };
      requests.push(r);
      const [status, headers = {}, body] = reply(r, requests.length - 1);
      if (status === 0) return req.socket.destroy();
      res.writeHead(status, headers);
      res.end(JSON.stringify(body ?? { batch_id: 'x', accepted: r.body.events.length, rejected: [], durable: 'kafka', duplicate: false }));
    });
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  return {
    requests,
    url: `http://127.0.0.1:${server.address().port}`,
    close: () => {
      server.closeAllConnections();
      return new Promise((done) => server.close(done));
    },
  };
}

export class FakeStorage {
  map = new Map();
  /** Characters; more throws as browsers do. */
  constructor(quota = Infinity) {
    this.quota = quota;
  }
  get length() {
    return this.map.size;
  }
  key(i) {
    return [...this.map.keys()][i] ?? null;
  }
  getItem(k) {
    return this.map.get(k) ?? null;
  }
  setItem(k, v) {
    let used = k.length + v.length;
    for (const [x, y] of this.map) if (x !== k) used += x.length + y.length;
    if (used > this.quota) throw new DOMException('the quota has been exceeded', 'QuotaExceededError');
    this.map.set(k, String(v));
  }
  removeItem(k) {
    this.map.delete(k);
  }
}
