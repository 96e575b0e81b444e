// The text a batch is kept as, in localStorage and in files alike:
// {"v":1,"key":"<uuid>","created":<epoch ms>,"events":[…]}

import type { Stored } from './platform.js';

const KEY = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

export const write = (b: Stored): string => `{"v":1,"key":"${b.key}","created":${b.created},"events":[${b.events!.join()}]}`;

/** The events, as the same texts that were written; undefined: damaged, or another batch. */
export function read(text: string, key: string): string[] | undefined {
  try {
    const b = JSON.parse(text);
    if (b.v === 1 && b.key === key && b.events.length && b.events.every((e: { event_id?: unknown }) => typeof e.event_id === 'string')) {
      // JSON.stringify made these texts, so it makes them again.
      return b.events.map((e: unknown) => JSON.stringify(e));
    }
  } catch {
    // The caller sets it aside.
  }
  return undefined;
}

/** <created, base 36>.<events>.<key>: what is known of a batch without reading it. */
export const nameOf = (b: Stored): string => `${b.created.toString(36)}.${b.count}.${b.key}`;

export function parseName(name: string): Stored | undefined {
  const [at, n, key, more] = name.split('.');
  const created = parseInt(at!, 36);
  const count = Number(n);
  return more === undefined && created > 0 && count >= 0 && KEY.test(key ?? '') ? { key: key!, created, count } : undefined;
}

/** Oldest first. */
export const byAge = (a: Stored, b: Stored): number => a.created - b.created;

/** Whoever has said nothing for so long is gone. Browsers slow the timers of a hidden tab down to a minute. */
export const GONE_MS = 100_000;

/** What nobody came back for in so long, under whatever name, is removed: past every logger's maxAgeMs. */
export const FORGET_MS = 21 * 86_400_000;
