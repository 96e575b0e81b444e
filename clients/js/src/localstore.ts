// Batches in localStorage: synchronous, so that they can be written while a page
// is going away. Keys: sluice1/<name>/<user>/<created>.<events>.<key> for a batch,
// sluice1/<name>/<user>/alive for the time its tab was last heard of.

import type { Store, Stored } from './platform.js';
import { byAge, FORGET_MS, GONE_MS, nameOf, parseName, read, write } from './stored.js';

const PREFIX = 'sluice1/';

export class LocalStore implements Store {
  // Memory keeps what is stored: applications clear localStorage when a user logs out.
  readonly spills = false;
  damaged!: (what: string) => void;
  private readonly own: string;
  private last = 0;

  /** maxChars bounds all batches of all loggers on this origin, in UTF-16 units. */
  constructor(
    private readonly s: Storage, private readonly name: string, private readonly user: string,
    private readonly maxChars: number, private readonly now: () => number,
  ) {
    this.own = `${PREFIX}${name}/${user}/`;
  }

  private keys(): string[] {
    const keys: string[] = [];
    for (let i = 0; i < this.s.length; i++) {
      const k = this.s.key(i);
      if (k?.startsWith(PREFIX)) keys.push(k);
    }
    return keys;
  }

  private beat(now: number): void {
    this.last = now;
    this.s.setItem(this.own + 'alive', String(now));
  }

  put(b: Stored): boolean {
    const k = this.own + nameOf(b);
    if (this.s.getItem(k)) return true;
    const text = write(b);
    let used = k.length + text.length;
    for (const x of this.keys()) used += x.length + (this.s.getItem(x) ?? '').length;
    if (used > this.maxChars) return false;
    const now = this.now();
    if (now - this.last > GONE_MS / 4) this.beat(now); // before the batch: another tab must not take it for left behind
    this.s.setItem(k, text); // whole or not at all; throws over the quota
    return true;
  }

  adopt(now: number, busy: boolean): Stored[] {
    const found: Stored[] = [];
    try {
      if (busy) this.beat(now);
      for (const k of this.keys()) {
        const [, name, user, rest] = k.split('/') as string[];
        if (user === this.user && name === this.name) continue;
        const alive = Number(this.s.getItem(`${PREFIX}${name}/${user}/alive`));
        if (Math.abs(now - alive) < GONE_MS) continue;
        const b = parseName(rest ?? '');
        if (!b || name !== this.name) {
          // A tab's last sign of life, or what no logger of that name came back for. What
          // is ours and as old is taken over all the same: its loss has to be reported.
          if (!b || now - b.created > FORGET_MS) this.s.removeItem(k);
          continue;
        }
        b.events = read(this.s.getItem(k) ?? '', b.key);
        if (!b.events) {
          this.s.removeItem(k);
          this.damaged(k + ' is damaged');
          continue;
        }
        // Ours from here on.
        if (!found.length) this.beat(now);
        try {
          const to = this.own + nameOf(b);
          const text = this.s.getItem(k)!;
          try {
            this.s.setItem(to, text);
            this.s.removeItem(k);
          } catch {
            this.s.removeItem(k); // no room for both: between the lines only memory has it
            this.s.setItem(to, text);
          }
        } catch (e) {
          this.damaged(String(e)); // in memory only
        }
        found.push(b);
      }
    } catch (e) {
      this.damaged(String(e)); // storage is forbidden or full
    }
    return found.sort(byAge);
  }

  load(b: Stored): string[] | undefined {
    return b.events;
  }

  remove(b: Stored): void {
    try {
      this.s.removeItem(this.own + nameOf(b));
    } catch {
      // It is sent again, under the same key.
    }
  }

  leave(): void {
    try {
      this.last = 0;
      this.s.removeItem(this.own + 'alive');
    } catch {
      // The next page waits until this one counts as gone.
    }
  }
}
