// Batches in a directory, one file each:
//   <name>~<user>~<created>.<events>.<key>.json    a batch
//   <name>~<user>~alive                            "<host> <pid>"; its mtime says when the logger was last heard of
//   *.tmp                                          being written; *.bad: could not be read, set aside

import { mkdir, open, readdir, readFile, rename, stat, unlink, utimes, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Store, Stored } from './platform.js';
import { byAge, FORGET_MS, GONE_MS, nameOf, parseName, read, write } from './stored.js';

/** The users of this module that were not closed. Workers, and the other of ESM and CommonJS, have their own. */
const here = new Set<string>();

/** A file that cannot be read (too many are open, say) is tried again after 0.1, 0.2, 0.4 s and so on, so often. */
const READS = 8;

export class DirStore implements Store {
  readonly spills = true;
  damaged!: (what: string) => void;
  private used = 0; // bytes, as last seen plus what was written since
  private ready: Promise<void> | undefined;

  /** maxBytes bounds all batches in the directory; processes that share it may pass it together by what they write within 30 s. */
  constructor(
    private readonly dir: string, private readonly name: string, private readonly user: string, private readonly maxBytes: number,
  ) {
    here.add(user);
  }

  private file(b: Stored): string {
    return join(this.dir, `${this.name}~${this.user}~${nameOf(b)}.json`);
  }

  private get alive(): string {
    return join(this.dir, `${this.name}~${this.user}~alive`);
  }

  private start(): Promise<void> {
    return (this.ready ??= (async () => {
      await mkdir(this.dir, { recursive: true });
      await writeFile(this.alive, `${hostname()} ${process.pid}`);
    })().catch((e) => {
      this.ready = undefined; // the directory may come
      throw e;
    }));
  }

  async put(b: Stored): Promise<boolean> {
    const text = Buffer.from(write(b));
    if (this.used + text.length > this.maxBytes) return false;
    this.used += text.length;
    const path = this.file(b);
    try {
      await this.start();
      const f = await open(path + '.tmp', 'w', 0o600);
      try {
        await f.writeFile(text);
        await f.sync();
      } finally {
        await f.close();
      }
      // A crash before the rename leaves a file nobody reads. After it the batch is
      // there; after the directory is synced it survives a power failure too.
      await rename(path + '.tmp', path);
      await this.syncDir();
    } catch (e) {
      this.used -= text.length;
      await unlink(path + '.tmp').catch(() => {});
      throw e;
    }
    return true;
  }

  private async syncDir(): Promise<void> {
    if (process.platform === 'win32') return; // directories cannot be opened there
    const d = await open(this.dir, 'r');
    try {
      await d.sync();
    } finally {
      await d.close();
    }
  }

  async adopt(now: number): Promise<Stored[]> {
    const found: Stored[] = [];
    try {
      await this.start();
      const t = now / 1000;
      await utimes(this.alive, t, t).catch(() => writeFile(this.alive, `${hostname()} ${process.pid}`));
      const gone = new Map<string, boolean>();
      let used = 0;
      for (const entry of await readdir(this.dir)) {
        const [name, user, rest] = entry.split('~');
        if (!rest) continue;
        const path = join(this.dir, entry);
        const info = await stat(path).catch(() => undefined);
        if (!info) continue; // somebody's own business, just now
        const whole = rest.endsWith('.json');
        if (whole) used += info.size;
        const who = `${name}~${user}`;
        if (user === this.user && name === this.name) continue;
        if (!gone.has(who)) gone.set(who, await this.isGone(who, user!, now));
        if (!gone.get(who)) continue;
        const b = whole ? parseName(rest.slice(0, -'.json'.length)) : undefined;
        if (!b || name !== this.name) {
          // Half written, set aside long ago, or so old that no logger would send it. What is
          // ours and as old is taken over all the same: its loss has to be reported.
          const old = now - Math.max(info.mtimeMs, b?.created ?? 0);
          if (rest.endsWith('.tmp') || old > (rest === 'alive' ? GONE_MS : FORGET_MS)) await unlink(path).catch(() => {});
          continue;
        }
        try {
          await rename(path, this.file(b)); // one of those who try gets it
          found.push(b);
        } catch {
          // Another did.
        }
      }
      this.used = used;
    } catch (e) {
      this.damaged(String(e));
    }
    return found.sort(byAge);
  }

  /** Whether a user is dead: its process is not there, or it has long said nothing. */
  private async isGone(who: string, user: string, now: number): Promise<boolean> {
    if (here.has(user)) return false;
    const path = join(this.dir, `${who}~alive`);
    try {
      const [host, pid] = (await readFile(path, 'utf8')).split(' ');
      if (host === hostname()) {
        // With our pid: of this process, where it said so since we began; else of one before us.
        if (Number(pid) === process.pid && (await stat(path)).mtimeMs < Date.now() - process.uptime() * 1000) return true;
        try {
          process.kill(Number(pid), 0);
        } catch (e) {
          if ((e as NodeJS.ErrnoException).code === 'ESRCH') return true;
        }
      }
      return Math.abs(now - (await stat(path)).mtimeMs) > GONE_MS;
    } catch {
      return true; // it left, or was never there
    }
  }

  async load(b: Stored): Promise<string[] | undefined> {
    const path = this.file(b);
    let text: string | undefined;
    for (let n = 0; text === undefined; n++) {
      try {
        text = await readFile(path, 'utf8');
      } catch (e) {
        if ((e as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
        if (!n) this.damaged(String(e));
        if (n === READS) return undefined; // the file stays, for the next process
        await sleep(100 * 2 ** n, undefined, { ref: false });
      }
    }
    const events = read(text, b.key);
    if (!events) {
      await rename(path, path + '.bad').catch(() => {});
      this.damaged(path + ' is damaged and was set aside');
    }
    return events;
  }

  async remove(b: Stored): Promise<void> {
    try {
      const path = this.file(b);
      const { size } = await stat(path);
      await unlink(path);
      this.used -= size;
    } catch {
      // Not there; or it is sent again, under the same key.
    }
  }

  async leave(): Promise<void> {
    here.delete(this.user);
    await unlink(this.alive).catch(() => {});
  }
}
