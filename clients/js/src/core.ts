// The logger itself, for any platform: what was logged becomes batches, and each
// batch is sent, under one key and with one list of events, until a collector has
// answered for it or there is a named reason to give it up.

import { bytes, encode, encodeReport, halfKey, isReport } from './encode.js';
import { Endpoints, verdict, type Endpoint } from './endpoints.js';
import type { Platform, Store, Stored } from './platform.js';
import type { CustomEvent, DropReason, Exposure, Logger, LoggerError, Options, Stats } from './types.js';

interface Batch extends Stored {
  /** Not before: a beacon may have delivered it, or it fails where others do not. */
  due: number;
  /** Attempts that failed. */
  tries: number;
  stored: boolean;
  /** Being put into storage. */
  saving?: Promise<void> | undefined;
}

const DAY = 86_400_000;
/** A larger event is given up when it is logged. Kafka's records end at 1 MiB, a page's storage too. */
const MAX_EVENT_BYTES = 256 * 1024;
/** What a browser's beacon may carry, all of its body included. */
export const MAX_BEACON_BYTES = 60 * 1024;
/** How long a batch that went out by beacon is left alone, where the page lives on. */
const BEACON_REST_MS = 5000;
/** How often a logger says that it is alive and looks for what others left behind. */
const ADOPT_MS = 30_000;
/** A timer that runs longer than a browser's 32 bits fires at once. */
const MAX_TIMER_MS = DAY;
/** Distinct counts of dropped events that are reported apart; the rest is summed. */
const MAX_REPORTS = 100;

/** What events take of queueEvents: one each, and one more for every 4 Ki characters. */
const weight = (events: string[]): number => events.reduce((n, e) => n + 1 + (e.length >> 12), 0);

const num = (v: unknown, def: number, min: number, max: number): number =>
  typeof v === 'number' && v >= min ? Math.min(v, max) : def;

/** Whoever waits in flush. */
interface Waiter { open: Set<Batch>; done: () => void }

export class Core implements Logger {
  private readonly id: string;
  private readonly endpoints: Endpoints | undefined;
  private readonly store: Store | undefined;
  private readonly batchSize: number;
  private readonly batchBytes: number;
  private readonly flushMs: number;
  private readonly queueEvents: number;
  private readonly maxAge: number;
  private readonly timeout: number;
  private readonly maxInFlight: number;

  private open: string[] = [];
  private openBytes = 0;
  private openSince = 0;
  private held = 0; // weight of the events in memory
  private waiting: Batch[] = []; // in turn: one that failed goes to the end
  private readonly flying = new Set<Batch>();
  private readonly aborts = new Set<() => void>(); // of the requests under way
  private drops = new Map<string, number>();
  private waiters: Waiter[] = [];
  private started: Promise<void> | undefined; // until storage was looked through
  private closing = false;
  private closed = false;
  private stopFlush: (() => void) | undefined;
  private stopPump: (() => void) | undefined;
  private stopAdopt: (() => void) | undefined;
  private readonly count = {
    logged: 0, recovered: 0, acknowledged: 0, rejected: 0, invalid: 0, handedOver: 0, retries: 0, beacons: 0,
  };
  private readonly dropped: Record<DropReason, number> = { queue_full: 0, expired: 0, refused: 0, too_large: 0 };

  constructor(private readonly options: Options, private readonly p: Platform) {
    const o: Options = options && typeof options === 'object' ? options : ({} as Options);
    this.options = o;
    this.id = p.uuid();
    this.store = p.store;
    if (p.store) p.store.damaged = (what) => this.tell('storage', what);
    this.batchSize = Math.floor(num(o.batchSize, 100, 1, 10_000));
    this.batchBytes = Math.min(num(o.batchBytes, 256 * 1024, 1, 4 << 20), p.maxBatchBytes);
    this.flushMs = num(o.flushIntervalMs, 1000, 0, DAY);
    this.queueEvents = num(o.queueEvents, 10_000, 1, Infinity);
    this.maxAge = num(o.maxAgeMs, 7 * DAY, 1, 20 * DAY);
    this.timeout = num(o.requestTimeoutMs, 10_000, 1, DAY);
    this.maxInFlight = num(o.maxInFlight, 4, 1, 64);
    try {
      this.endpoints = new Endpoints(o.endpoints, o.key, num(o.retryBaseMs, 500, 1, DAY), num(o.retryCapMs, 30_000, 1, DAY), p.random);
    } catch (e) {
      this.tell('config', (e as Error).message);
      return;
    }
    this.look();
  }

  exposure(exposure: Exposure): void {
    this.log('exposure', exposure);
  }

  event(event: CustomEvent): void {
    this.log('event', event);
  }

  private log(kind: 'exposure' | 'event', input: Exposure | CustomEvent): void {
    const now = this.p.now();
    let text: string;
    try {
      if (this.closing || !this.endpoints) throw new Error('closed');
      text = encode(kind, input, this.p.uuid(), now, (m) => this.tell('attribute', m));
    } catch (e) {
      this.count.invalid++;
      this.tell('invalid', `${kind}: ${(e as Error).message}`, 1);
      return;
    }
    this.count.logged++;
    const size = bytes(text);
    if (size > Math.max(this.batchBytes, MAX_EVENT_BYTES)) {
      return this.drop([text], 'too_large');
    }
    // The newest is dropped, not the oldest: a batch that has its key may be stored
    // already, its answer lost, and must not change nor be counted as dropped. Every
    // variant is hit alike, by when it was logged, and the report says how much.
    if (this.held >= this.queueEvents) {
      return this.drop([text], 'queue_full');
    }
    if (this.open.length && this.openBytes + size > this.batchBytes) this.seal();
    if (!this.open.length) {
      this.openSince = now;
      this.stopFlush = this.p.timer(() => this.seal(), this.flushMs);
    }
    this.open.push(text);
    this.openBytes += size + 1;
    this.held += weight([text]);
    if (this.open.length >= this.batchSize) this.seal();
  }

  /** Closes the open batch, with the reports of what was dropped before it. */
  private seal(alsoReports = false, hiding = false): void {
    this.stopFlush?.();
    // While collectors are away, reports too must end somewhere: they wait as counts.
    const drops = this.held < this.queueEvents + MAX_REPORTS ? this.drops : new Map<string, number>();
    let list = this.open;
    let size = this.openBytes;
    const now = this.p.now();
    const since = list.length ? this.openSince : now;
    this.open = [];
    this.openBytes = 0;
    if (!list.length && !(alsoReports && drops.size)) return;
    if (drops.size) this.drops = new Map();
    for (const [of, n] of drops) {
      const { reason, ...rest } = JSON.parse(of);
      const text = encodeReport(this.id, rest, reason, n, this.p.uuid(), now);
      if (list.length && size + text.length * 3 > this.batchBytes) {
        this.add(list, since, this.p.uuid());
        list = [];
        size = 0;
      }
      list.push(text);
      size += bytes(text) + 1;
      this.held += weight([text]);
    }
    this.add(list, since, this.p.uuid());
    if (!hiding) this.pump();
  }

  /** Makes a batch. From here on its key and its events belong together. */
  private add(events: string[], created: number, key: string): Batch {
    const b: Batch = { key, created, count: events.filter((e) => !isReport(e)).length, events, due: 0, tries: 0, stored: false };
    this.waiting.push(b);
    this.save(b);
    return b;
  }

  /**
   * Writes the batch down before its first attempt. A crash before that loses it;
   * a crash at any time after leaves it to the next session, under the same key.
   */
  private save(b: Batch): void {
    if (!this.store) return;
    const failed = (e: unknown) => this.tell('storage', 'failed: ' + message(e), b.count);
    try {
      const r = this.store.put(b);
      if (typeof r === 'boolean') {
        b.stored = r;
        if (!r) failed('no room');
        return;
      }
      b.saving = r.then((ok) => {
        b.stored = ok;
        if (!ok) failed('no room');
      }, failed).then(() => {
        b.saving = undefined;
        if (!this.flying.has(b)) this.spill(b);
      });
    } catch (e) {
      failed(e);
    }
  }

  /** Frees the memory of a batch that storage holds, where storage can give it back. */
  private spill(b: Batch): void {
    if (b.stored && b.events && this.store?.spills) {
      this.held -= weight(b.events);
      b.events = undefined;
    }
  }

  private all(): Batch[] {
    return [...this.flying, ...this.waiting];
  }

  private look(): void {
    if (this.started || !this.endpoints) return;
    const s = this.adopt();
    this.started = s;
    void s.then(() => {
      this.started = undefined;
    });
  }

  /** Looks, now and again, for batches that nobody owns any more. */
  private async adopt(): Promise<void> {
    this.stopAdopt?.();
    if (!this.store || this.closed) return;
    const own = this.all();
    const r = this.store.adopt(this.p.now(), own.length > 0);
    const found = Array.isArray(r) ? r : await r;
    for (const s of found) {
      if (own.some((b) => b.key === s.key)) continue;
      if (s.events) this.held += weight(s.events);
      this.count.recovered += s.count;
      this.back({ ...s, due: 0, tries: 0, stored: true });
    }
    if (this.closed) return;
    this.stopAdopt = this.p.timer(() => this.look(), ADOPT_MS);
    this.pump();
  }

  /** Starts what can be sent now, and sets the timer for what cannot. */
  private pump(): void {
    this.stopPump?.();
    this.stopPump = undefined;
    if (this.closed || !this.endpoints) return;
    const now = this.p.now();
    let next = Infinity;
    for (const b of this.waiting.slice()) {
      const left = b.created + this.maxAge - now;
      if (left <= 0) {
        this.waiting.splice(this.waiting.indexOf(b), 1);
        this.flying.add(b); // nobody else touches it meanwhile
        void this.giveUp(b, 'expired');
        continue;
      }
      if (this.flying.size >= this.maxInFlight) break;
      next = Math.min(next, left);
      if (b.due > now) {
        next = Math.min(next, b.due - now);
        continue;
      }
      const e = this.endpoints.pick(now);
      if (typeof e === 'number') {
        next = Math.min(next, Math.abs(e)); // a request that ends comes here itself
        // What is in storage need not be waited for while every endpoint is failing.
        if (e > 0) for (const w of this.waiting) if (w.stored) this.release(w);
        break;
      }
      this.waiting.splice(this.waiting.indexOf(b), 1);
      this.flying.add(b);
      e.inFlight++;
      void this.send(b, e);
    }
    if (next < Infinity) this.stopPump = this.p.timer(() => this.pump(), Math.min(next, MAX_TIMER_MS));
  }

  /** The text of a request. The events are the same each time; only sent_at is not. */
  private body(events: string[]): string {
    return `{"events":[${events.join()}],"sent_at":${this.p.now()},"sdk":${this.p.sdk}}`;
  }

  private async events(b: Batch): Promise<string[] | undefined> {
    if (b.saving) await b.saving; // spill leaves it alone: it is flying
    if (!b.events) {
      const events = await this.store?.load(b);
      if (events) {
        b.events = events;
        this.held += weight(events);
      }
    }
    return b.events;
  }

  /** One attempt. The batch is in flying, and is gone from there at the end. */
  private async send(b: Batch, e: Endpoint): Promise<void> {
    const events = await this.events(b);
    if (!events || this.closed) {
      e.inFlight--;
      if (events) return this.back(b);
      this.count.handedOver += b.count;
      return this.settle(b);
    }
    const start = this.p.now();
    const abort = new AbortController();
    const stop = () => abort.abort();
    const cancel = this.p.timer(stop, this.timeout);
    this.aborts.add(stop);
    let res: Response | undefined;
    let answer = '';
    let why = 'no answer';
    try {
      res = await this.p.fetch(e.url, {
        method: 'POST',
        headers: { authorization: 'Bearer ' + this.options.key, 'content-type': 'application/json', 'idempotency-key': b.key },
        body: this.body(events),
        signal: abort.signal,
        credentials: 'omit',
        // Following one would turn the POST into a GET, and a page's 200 into a receipt.
        redirect: 'manual',
      });
      answer = await res.text();
    } catch (err) {
      why = message(err);
    }
    cancel();
    this.aborts.delete(stop);
    const now = this.p.now();
    const v = verdict(res, answer, now);
    e.inFlight--;
    if (v.is === 'again' || v.is === 'slowly') {
      if (this.closed) return this.back(b);
      this.count.retries++;
      if (this.endpoints!.failed(e, b, start, now, v.wait, v.is === 'slowly')) {
        this.tell('delivery', `${e.url}: ${res ? 'status ' + res.status : why}`, b.count);
      }
      if (!b.stored) this.save(b); // there may be room by now
      this.back(b);
      if (b.stored) this.release(b);
      return this.pump();
    }
    this.endpoints!.worked(e);
    if (v.is === 'done') {
      // The collector has made it durable. A crash before the batch is removed
      // sends it again, and the same key makes that a duplicate there.
      this.count.acknowledged += b.count;
      this.count.rejected += v.rejected;
      await this.store?.remove(b);
      return this.settle(b);
    }
    if (v.is === 'halve' && events.length > 1) return this.halve(b, events);
    return this.giveUp(b, v.is === 'halve' ? 'too_large' : 'refused');
  }

  /** Puts a batch behind the others: one that no collector takes must not hold them up. */
  private back(b: Batch): void {
    this.flying.delete(b);
    this.waiting.push(b);
    this.spill(b);
  }

  /** Replaces a batch that is too large for its endpoint by two. */
  private async halve(b: Batch, events: string[]): Promise<void> {
    const mid = events.length >> 1;
    this.held += weight(events); // both, for a moment: settle takes one off
    const halves = [events.slice(0, mid), events.slice(mid)].map((list, i) => this.add(list, b.created, halfKey(b.key, i)));
    for (const h of halves) if (h.saving) await h.saving;
    // A crash before this line leaves all three; the whole is halved again, into
    // the same two.
    await this.store?.remove(b);
    // There may be room for a half now.
    for (const h of halves) if (!h.stored && this.waiting.includes(h)) this.save(h);
    this.settle(b, halves);
  }

  /** Drops a batch for good. The counts are noted before it leaves storage: a crash between sends it once more. */
  private async giveUp(b: Batch, reason: DropReason): Promise<void> {
    const events = await this.events(b);
    if (events) this.drop(events, reason);
    else this.count.handedOver += b.count;
    await this.store?.remove(b);
    this.settle(b);
  }

  private settle(b: Batch, instead: Batch[] = []): void {
    this.flying.delete(b);
    if (b.events) this.held -= weight(b.events);
    b.events = undefined;
    this.release(b, instead);
    this.pump();
  }

  /** Tells those who wait in flush that they need not wait for b, but for these. */
  private release(b: Batch, instead: Batch[] = []): void {
    for (const w of this.waiters.slice()) {
      if (!w.open.delete(b)) continue;
      for (const x of instead) w.open.add(x);
      if (!w.open.size) w.done();
    }
  }

  /** Counts events as dropped, for the next report. A report among them is counted anew. */
  private drop(events: string[], reason: DropReason): void {
    let n = 0;
    for (const text of events) {
      const e = JSON.parse(text);
      if (isReport(text)) {
        this.note(e.attributes, e.value);
        continue;
      }
      n++;
      this.note(e.name === undefined ? { experiment: e.experiment, variant: e.variant, reason } : { event: e.name, reason }, 1);
    }
    this.dropped[reason] += n;
    if (n) this.tell('dropped', reason, n);
  }

  private note(of: Record<string, string>, n: number): void {
    let k = JSON.stringify(of);
    // Beyond the bound only the reasons are told apart.
    if (!this.drops.has(k) && this.drops.size >= MAX_REPORTS) {
      k = JSON.stringify({ experiment: '*', variant: '*', reason: of.reason });
    }
    this.drops.set(k, (this.drops.get(k) ?? 0) + n);
  }

  async flush(timeoutMs?: number): Promise<void> {
    if (!this.endpoints || this.closed) return;
    let release: (() => void) | undefined;
    const late = new Promise<void>((r) => {
      release = r;
    });
    const stopTimer = timeoutMs === undefined ? undefined : this.p.timer(release!, num(timeoutMs, 0, 0, MAX_TIMER_MS));
    const drop = this.p.hold?.();
    const waiter: Waiter = { open: new Set(), done: release! };
    if (this.started) await Promise.race([this.started, late]);
    this.seal(true);
    for (const b of this.all()) waiter.open.add(b);
    if (waiter.open.size) {
      this.waiters.push(waiter);
      this.pump();
      await late;
      this.waiters = this.waiters.filter((w) => w !== waiter);
    }
    stopTimer?.();
    drop?.();
  }

  async close(timeoutMs = 10_000): Promise<void> {
    if (this.closing) return this.flush(timeoutMs);
    this.closing = true;
    const end = this.p.now() + timeoutMs;
    await this.flush(timeoutMs);
    if (this.drops.size) await this.flush(end - this.p.now()); // given up just now: somebody has to say so
    this.closed = true;
    for (const stop of [this.stopFlush, this.stopPump, this.stopAdopt, ...this.aborts, ...this.waiters.map((w) => w.done)]) stop?.();
    // What is being written is let finish: a batch half written is none.
    for (const b of this.all()) await b.saving;
    await this.store?.leave();
    const s = this.stats();
    if (s.pending > s.stored) this.tell('delivery', 'closed', s.pending - s.stored);
  }

  stats(): Stats {
    let pending = this.open.length;
    let stored = 0;
    for (const b of this.all()) {
      pending += b.count;
      if (b.stored) stored += b.count;
    }
    return { ...this.count, dropped: { ...this.dropped }, pending, stored };
  }

  /**
   * The page may be gone after this: everything not acknowledged is put into
   * storage and handed to a beacon, synchronously. Whether a beacon arrives is never
   * known, so the batch stays, and is sent again under the same key.
   */
  hide(beacon: (url: string, body: string) => boolean): void {
    if (!this.endpoints || this.closed) return;
    this.seal(true, true); // no request that the page would take with it
    const now = this.p.now();
    for (const b of this.all()) {
      if (!b.events) continue;
      this.save(b); // also what was stored: the host may have cleared it
      if (b.due > now) continue;
      const e = this.endpoints.forBeacon(now, b.stored);
      if (!e) continue;
      const body = this.body(b.events);
      if (bytes(body) > MAX_BEACON_BYTES) continue;
      if (beacon(`${e.url}?k=${encodeURIComponent(this.options.key)}&idempotency_key=${b.key}`, body)) {
        b.due = now + BEACON_REST_MS;
        this.count.beacons++;
      }
    }
    this.pump(); // the page may live on
  }

  /** The page lives on, or the network is back: what waits out a failure need not. */
  resume(): void {
    this.endpoints?.hurry();
    this.look();
    this.pump();
  }

  private tell(code: LoggerError['code'], text: string, count?: number): void {
    try {
      this.options.onError?.(count === undefined ? { code, message: text } : { code, message: text, count });
    } catch {
      // The host's own mistake; it must not cost it an exposure.
    }
  }
}

const message = (e: unknown): string => String((e as Error)?.message ?? e);
