// Which collector is asked next, and what its answer means.

export interface Endpoint {
  readonly url: string;
  inFlight: number;
  /** Failures in a row; what fails together counts once. */
  fails: number;
  failedAt: number;
  /** Not asked before: the backoff. */
  notBefore: number;
  /** Not asked before: what the collector said (Retry-After). Nothing shortens it. */
  told: number;
  /** Not preferred before, as long as another one works. */
  avoid: number;
}

/** A wrong key or URL: somebody may put it right, but not within seconds. */
const SLOW_BASE_MS = 30_000;
const SLOW_CAP_MS = 600_000;

export class Endpoints {
  private readonly list: Endpoint[];

  /** Throws with a sentence for a person where the configuration cannot be right. */
  constructor(urls: unknown, key: unknown, private readonly base: number, private readonly cap: number, private readonly random: () => number) {
    const all = (Array.isArray(urls) ? urls : [urls]).filter((u) => u != null && u !== '');
    if (!all.length) throw new Error('endpoints: want http(s)://host/path');
    if (typeof key !== 'string' || !/^[\x21-\x7e]+$/.test(key)) throw new Error('key: want visible ASCII');
    this.list = all.map((u) => {
      let url: URL | undefined;
      try {
        url = new URL(String(u), (globalThis as { location?: { href: string } }).location?.href);
      } catch {
        // Told below.
      }
      // fetch takes no user or password, and a beacon would send no fragment.
      if (!url || !/^https?:$/.test(url.protocol) || url.username || url.password || url.search || url.hash) {
        throw new Error('endpoints: want http(s)://host/path');
      }
      return {
        url: url.href.replace(/\/+$/, '') + '/v1/exposures', inFlight: 0, fails: 0, failedAt: -1, notBefore: 0, told: 0, avoid: 0,
      };
    });
  }

  /**
   * The endpoint to ask now: the first one that is not avoided, else the one that
   * has been avoided longest. A failing endpoint gets one request at a time. Where
   * none may be asked: in how many ms one may; negative: or when a request ends, if that is sooner.
   */
  pick(now: number): Endpoint | number {
    let best: Endpoint | undefined;
    let wait = Infinity;
    let busy = false;
    for (const e of this.list) {
      const at = Math.max(e.notBefore, e.told);
      if (at > now) {
        wait = Math.min(wait, at - now);
      } else if (e.fails && e.inFlight) {
        busy = true;
      } else if (!best || (best.avoid > now && e.avoid < best.avoid)) {
        best = e;
      }
    }
    return best ?? (busy ? -wait : wait);
  }

  /** The same for a beacon. A batch that is in no storage ignores the backoff: it is its last chance. */
  forBeacon(now: number, stored: boolean): Endpoint | undefined {
    const may = this.list.filter((e) => e.told <= now && (!stored || e.notBefore <= now));
    return may.find((e) => e.avoid <= now) ?? may[0];
  }

  /** Notes a failure of an attempt made from start to now. True: the endpoint's first in a row. */
  failed(e: Endpoint, b: { tries: number; due: number }, start: number, now: number, wait: number, slowly: boolean): boolean {
    // Full jitter: random up to base, 2 base, 4 base and so on to the cap.
    const until = (n: number) => now + (slowly
      ? Math.min(SLOW_CAP_MS, SLOW_BASE_MS * 2 ** n) * (0.5 + this.random() / 2)
      : this.random() * Math.min(this.cap, this.base * 2 ** n));
    if (start > e.failedAt || !e.fails) {
      e.failedAt = now;
      e.notBefore = until(e.fails++);
      e.avoid = Math.max(e.notBefore, now + this.cap);
    }
    // A batch that fails where others succeed waits by itself: their success ends the endpoint's wait.
    const rounds = ++b.tries / this.list.length;
    if (rounds > e.fails) b.due = until(rounds - 1);
    e.told = Math.max(e.told, now + wait);
    return e.fails === 1 && e.failedAt === now;
  }

  worked(e: Endpoint): void {
    e.fails = e.notBefore = e.avoid = 0;
  }

  hurry(): void {
    for (const e of this.list) e.notBefore = 0;
  }
}

export interface Verdict {
  is: 'done' | 'again' | 'slowly' | 'halve' | 'refused';
  /** Not before so many ms from now. */
  wait: number;
  /** Events the collector keeps as dead letters. */
  rejected: number;
}

/**
 * What an answer, or none, means for the batch. Only a collector's own answer is
 * a receipt: 202, which nothing in between answers, or 200 with a batch_id, not
 * the page of a portal that wants a password or whatever else answers every POST.
 */
export function verdict(res: Response | undefined, body: string, now: number): Verdict {
  const v: Verdict = { is: 'again', wait: 0, rejected: 0 };
  if (!res) return v;
  const s = res.status;
  let answer: { batch_id?: unknown; rejected?: unknown[]; code?: unknown } | undefined;
  try {
    const parsed = JSON.parse(body);
    if (parsed && typeof parsed === 'object') answer = parsed;
  } catch {
    // None of ours, or cut off.
  }
  const rejected = Array.isArray(answer?.rejected) ? answer.rejected.length : 0;
  if (s === 202 || (s === 200 && answer?.batch_id) || (s === 422 && answer?.code === 'all_rejected')) {
    return { is: 'done', wait: 0, rejected };
  }
  const after = res.headers.get('retry-after');
  if (after) {
    const secs = +after;
    // A date is of the server's clock: measured from its own Date where that can be seen.
    const ms = secs >= 0 ? secs * 1000 : Date.parse(after) - (Date.parse(res.headers.get('date') ?? '') || now);
    if (ms > 0) v.wait = Math.min(ms, 86_400_000); // a slip of the pen must not silence it for ever
  }
  if (s === 413) v.is = 'halve';
  // A body that broke off on the way (400 incomplete_body, the one code with an i) is none of the batch's fault.
  else if ((s === 400 || s === 415 || s === 422) && !/^i/.test(answer?.code as string)) v.is = 'refused';
  // A redirect, a key or path that is wrong, or something that is no collector. A
  // browser shows a redirect that was not followed as status 0.
  else if (s < 200 || (s >= 300 && s < 500 && s !== 408 && s !== 429)) v.is = 'slowly';
  return v;
}
