// The logger in Node: batches outlive the process in a directory, where one is named.

import { randomUUID } from 'node:crypto';
import { Core } from './core.js';
import { DirStore } from './dirstore.js';
import { hash } from './encode.js';
import type { Platform } from './platform.js';
import type { Logger, Options } from './types.js';

export type * from './types.js';

declare const VERSION: string;

export interface NodeOptions extends Options {
  /** Where batches outlive the process. Default: nowhere. */
  persist?: {
    /** On a local disk. Several processes may share it. */
    dir: string;
    /** All batches in the directory together. Default 64 MiB. */
    maxBytes?: number;
    /**
     * Loggers with the same name send what the others left behind. Default: made
     * from the write key. Name it, the same for ever, to have what a wrong or
     * replaced key left behind sent under the new one; never share a name between projects.
     */
    name?: string;
  };
}

/**
 * Never throws: a logger that cannot work says so to onError and takes nothing.
 * Its timers do not keep the process alive; flush and close do, until they resolve.
 */
export function createLogger(options: NodeOptions): Logger {
  const o = options ?? ({} as NodeOptions);
  const platform: Platform = {
    sdk: `{"name":"sluice-js","version":"${VERSION}"}`,
    fetch: (url, init) => fetch(url, init),
    now: () => Math.floor(Date.now()),
    random: Math.random,
    uuid: randomUUID,
    timer(fn, ms) {
      const t = setTimeout(fn, ms);
      t.unref?.(); // where a host put a page's timers in place, they are numbers
      return () => clearTimeout(t);
    },
    hold() {
      const t = setInterval(() => {}, 60_000);
      return () => clearInterval(t);
    },
    maxBatchBytes: Infinity,
  };
  if (o.persist?.dir) {
    const max = o.persist.maxBytes;
    // Half a surrogate pair cannot be encoded.
    const given = o.persist.name === undefined ? hash(String(o.key)) : String(o.persist.name).replace(/[\ud800-\udfff]/gu, '\ufffd');
    const name = encodeURIComponent(given).replace(/~/g, '%7E');
    platform.store = new DirStore(o.persist.dir, name, randomUUID(), max! > 0 ? max! : 64 << 20);
  }
  return new Core(o, platform);
}
