// The logger in a browser: batches outlive the page in localStorage, and go out by
// beacon when it is hidden.

import { Core, MAX_BEACON_BYTES } from './core.js';
import { hash } from './encode.js';
import { LocalStore } from './localstore.js';
import type { Platform } from './platform.js';
import type { Logger, Options } from './types.js';

export type * from './types.js';

declare const VERSION: string;

export interface BrowserOptions extends Options {
  /** Where batches outlive the page: localStorage, unless false. */
  persist?: false | {
    /** All batches of this origin together, in UTF-16 characters. Default 1 Mi. */
    maxChars?: number;
    /**
     * Loggers with the same name send what the others left behind. Default: made
     * from the write key. Name it, the same for ever, to have what a wrong or
     * replaced key left behind sent under the new one; never share a name between projects.
     */
    name?: string;
  };
}

/** randomUUID is only there on pages served securely. */
function uuid(): string {
  const c = globalThis.crypto;
  if (c.randomUUID) return c.randomUUID();
  const b = c.getRandomValues(new Uint8Array(16));
  b[6] = (b[6]! & 15) | 64;
  b[8] = (b[8]! & 63) | 128;
  return Array.from(b, (x, i) => ([4, 6, 8, 10].includes(i) ? '-' : '') + (x + 256).toString(16).slice(1)).join('');
}

/** Never throws: a logger that cannot work says so to onError and takes nothing. */
export function createLogger(options: BrowserOptions): Logger {
  const o = options ?? ({} as BrowserOptions);
  const now = () => Math.floor(Date.now()); // some pages put a finer clock in place
  const platform: Platform = {
    sdk: `{"name":"sluice-js","version":"${VERSION}"}`,
    fetch: (url, init) => fetch(url, init),
    now,
    random: Math.random,
    uuid,
    timer(fn, ms) {
      const t = setTimeout(fn, ms);
      return () => clearTimeout(t);
    },
    maxBatchBytes: MAX_BEACON_BYTES - 256, // room for sent_at and sdk
  };
  if (o.persist !== false) {
    try {
      const name = encodeURIComponent(o.persist?.name ?? hash(String(o.key)));
      const max = o.persist?.maxChars;
      // Asking for localStorage throws where the page may not have it.
      platform.store = new LocalStore(localStorage, name, uuid(), max! > 0 ? max! : 1 << 20, now);
    } catch {
      // Memory only.
    }
  }
  const core = new Core(o, platform);
  if (typeof document === 'undefined' || typeof addEventListener !== 'function') return core;

  const hide = () => core.hide((url, body) => {
    try {
      // A string goes as text/plain, which needs no preflight.
      if (navigator.sendBeacon?.(url, body)) return true;
      // Outcome unknown too. Beacons and these share one allowance of 64 KiB.
      void fetch(url, { method: 'POST', body, keepalive: true, credentials: 'omit' }).catch(() => {});
      return true;
    } catch {
      return false; // it stays in storage
    }
  });
  const hidden = () => {
    if (document.visibilityState === 'hidden') hide();
  };
  const pagehide = () => {
    hide();
    // The next page may take over at once. If this one comes back (bfcache), it and
    // the other both send: the same keys.
    void platform.store?.leave();
  };
  const resume = () => core.resume();
  const on: [EventTarget, string, () => void][] = [
    [document, 'visibilitychange', hidden], [globalThis, 'pagehide', pagehide], [globalThis, 'pageshow', resume], [globalThis, 'online', resume],
  ];
  for (const [target, type, fn] of on) target.addEventListener(type, fn);
  const close = core.close.bind(core);
  core.close = async (ms) => {
    await close(ms);
    for (const [target, type, fn] of on) target.removeEventListener(type, fn);
  };
  return core;
}
