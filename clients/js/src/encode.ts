// From what a host passes to the text of an event, or why there is none.

import type { CustomEvent, Exposure } from './types.js';

// The collector's limits (bytes of UTF-8). An event past one of them would be
// rejected there; here it is known before it is sent.
const MAX_FIELD = 4096;
const MAX_ATTRIBUTES = 256;
const MAX_ATTRIBUTE_KEY = 1024;
const MAX_ATTRIBUTE_VALUE = 65536;

/** The custom event that reports what a logger had to give up. */
export const DROPPED = 'sluice.dropped';
const REPORT = `{"kind":"event","name":"${DROPPED}",`;

const utf8 = new TextEncoder();
export const bytes = (s: string): number => utf8.encode(s).length;

/** Half a surrogate pair or a NUL: the collector rejects an event for one. */
const BAD = /[\ud800-\udfff\0]/u;
const BAD_ALL = /[\ud800-\udfff\0]/gu;

type Fields = Record<string, unknown>;

function text(from: Fields, name: string, required: boolean): string | undefined {
  let v = from[name];
  if (typeof v === 'boolean' || typeof v === 'bigint' || (typeof v === 'number' && isFinite(v))) {
    v = String(v);
  }
  if (!required && (v == null || v === '')) return undefined;
  if (typeof v !== 'string' || v === '') throw new Error(name + ': want text');
  if (BAD.test(v)) throw new Error(name + ' has a NUL or half a pair');
  if (bytes(v) > MAX_FIELD) throw new Error(name + ' is too long');
  return v;
}

function time(v: unknown, now: number): number {
  const ms = v == null ? now : Math.round(v instanceof Date ? v.getTime() : typeof v === 'number' ? v : NaN);
  // Year 1 to 9999: what the collector can read. It moves what is far off.
  if (!(ms > 0 && ms < 253402300800000)) throw new Error('time: want a Date or epoch ms');
  return ms;
}

/** An attribute is an extra: a bad one is left out or mended, and costs the event nothing else. */
function attributes(from: unknown, warn: (message: string) => void): Fields | undefined {
  if (from == null || typeof from !== 'object') {
    if (from != null) warn('attributes: want an object');
    return undefined;
  }
  const out: Fields = Object.create(null);
  let n = 0;
  for (const [name, value] of Object.entries(from)) {
    let v: unknown = value;
    if (v === undefined) continue;
    if (typeof v === 'bigint') v = String(v);
    if (v !== null && typeof v === 'object') {
      try {
        v = v instanceof Date ? v.toISOString() : JSON.stringify(v);
      } catch {
        v = undefined; // a cycle, or a date that is none
      }
    }
    const key = name.replace(BAD_ALL, '\ufffd');
    if (
      n === MAX_ATTRIBUTES || bytes(key) > MAX_ATTRIBUTE_KEY ||
      !(v === null || typeof v === 'string' || typeof v === 'boolean' || (typeof v === 'number' && isFinite(v)))
    ) {
      warn('left out');
      continue;
    }
    if (typeof v === 'string') {
      v = v.replace(BAD_ALL, '\ufffd');
      if (bytes(v as string) > MAX_ATTRIBUTE_VALUE) {
        warn('left out');
        continue;
      }
    }
    out[key] = v;
    n++;
  }
  return n ? out : undefined;
}

/**
 * Returns the event's JSON text, which never changes from here on: what is sent
 * under a key is the same whatever the host does to its objects. Throws where the
 * input cannot be right.
 */
export function encode(
  kind: 'exposure' | 'event', input: Exposure | CustomEvent, id: string, now: number, warn: (message: string) => void,
): string {
  const from = input as unknown as Fields;
  if (from == null || typeof from !== 'object') throw new Error('not an object');
  const common = { unit_id: text(from, 'unitId', true), unit_type: text(from, 'unitType', false), time: time(from.time, now) };
  const rest = { event_id: id, attributes: attributes(from.attributes, warn) };
  if (kind === 'exposure') {
    return JSON.stringify({
      experiment: text(from, 'experiment', true), variant: text(from, 'variant', true), ...common,
      rule: text(from, 'rule', false), reason: text(from, 'reason', false), ...rest,
    });
  }
  const name = text(from, 'name', true);
  if (name === DROPPED) throw new Error(DROPPED + " is the logger's own");
  const value = from.value ?? undefined;
  if (value !== undefined && !(typeof value === 'number' && isFinite(value))) throw new Error('value: want a number');
  return JSON.stringify({ kind, name, ...common, value, ...rest });
}

/** A count of dropped events, as a custom event. of: experiment and variant, or event. */
export function encodeReport(unit: string, of: Fields, reason: string, value: number, id: string, now: number): string {
  return REPORT + JSON.stringify({
    unit_type: 'client', unit_id: unit, value, time: now, event_id: id, attributes: { ...of, reason },
  }).slice(1);
}

/** Tells reports from what a host logged. */
export const isReport = (event: string): boolean => event.startsWith(REPORT);

/** A 64-bit hash as 16 hex digits: FNV-1a in two lanes, each mixed as murmur3 ends. Not for secrets. */
export function hash(s: string): string {
  const lane = (h: number) => {
    for (let i = 0; i < s.length; i++) h = Math.imul(h ^ s.charCodeAt(i), 0x01000193);
    h = Math.imul(h ^ h >>> 16, 0x85ebca6b);
    h = Math.imul(h ^ h >>> 13, 0xc2b2ae35);
    return ((h ^ h >>> 16) >>> 0).toString(16).padStart(8, '0');
  };
  return lane(0x811c9dc5) + lane(0x9747b28c);
}

/**
 * The key of one half of a batch. It is a function of the batch's own key, so a
 * batch that is halved twice (a crash before the halves were stored, two tabs)
 * yields the same two batches.
 */
export function halfKey(key: string, half: number): string {
  const h = hash(key + '/' + half) + hash(half + '\\' + key);
  return [h.slice(0, 8), h.slice(8, 12), '8' + h.slice(13, 16), 'a' + h.slice(17, 20), h.slice(20)].join('-');
}
