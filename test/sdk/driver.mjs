// What the drivers of the Node SDKs have in common: the arguments, the lines they
// print, and that nothing but this machine is reached.
//
//   node drive.mjs COLLECTOR_URL KEY RUN_ID [USERS] [PAUSE_MS]
//
// COLLECTOR_URL without a path (http://127.0.0.1:8080); RUN_ID goes into every name,
// letters, digits, _ and -; USERS defaults to 20. With PAUSE_MS there is a pause after
// each user and the SDK sends as it goes, instead of all at the end.
//
// Lines on standard output, as those of statsig-node's driver:
//   {"type":"exposure","experiment","variant","rule","unit_type","unit_id","reason"?,"from","to"}
//   {"type":"event","name","value","unit_type","unit_id","attributes"?,"from","to"}
//   {"type":"done","sdk","version","exposures","events","given_up"?,"elapsed_ms"}
// from and to: the event's time lies between, epoch ms.
// Exit status: 0 the SDK reported delivery, or has no word for it; 1 it gave events
// up, or reached for another host; 2 wrong arguments.

import dns from 'node:dns';
import http from 'node:http';
import { readFileSync } from 'node:fs';

/**
 * Reads the arguments and returns the run. at is the URL of the driver's file, beside
 * which sdk is installed; keyPrefix is what the SDK insists that a key begins with.
 */
export function start({ sdk, at, keyPrefix = '' }) {
  const [url, key, run, users = '20', pause = '0'] = process.argv.slice(2);
  if (!url || !key?.startsWith(keyPrefix) || !/^[\w-]+$/.test(run ?? '') || !/^[1-9]\d{0,3}$/.test(users) || !/^\d{1,5}$/.test(pause)) {
    process.stderr.write(`usage: node drive.mjs COLLECTOR_URL ${keyPrefix}KEY RUN_ID [USERS] [PAUSE_MS]\n`);
    process.exit(2);
  }
  const { version } = JSON.parse(readFileSync(new URL(`node_modules/${sdk}/package.json`, at), 'utf8'));
  return new Run({ sdk, version, url: url.replace(/\/$/, ''), key, run, users: Number(users), pause: Number(pause) });
}

class Run {
  #exposures = 0;
  #events = 0;
  #givenUp = [];
  #reached = stayHere();
  #started = Date.now();
  // The timers of some SDKs do not keep the process alive, and a resend waits on one.
  #alive = setInterval(() => {}, 1000);

  constructor(fields) {
    Object.assign(this, fields);
  }

  /** The users' ids. */
  *units() {
    for (let i = 0; i < this.users; i++) {
      yield [`${this.run}-u${i}`, i];
    }
  }

  /** Waits PAUSE_MS. */
  async rest() {
    if (this.pause) await new Promise((done) => setTimeout(done, this.pause));
  }

  /** Runs what logs one exposure, which may return more of the line, and prints it. */
  exposure(line, log) {
    this.#exposures++;
    return logged({ type: 'exposure', rule: '', unit_type: 'user', ...line }, log);
  }

  /** Runs what logs one custom event, and prints it. */
  event(line, log) {
    this.#events++;
    return logged({ type: 'event', unit_type: 'user', ...line }, log);
  }

  /** Notes that the SDK reported to have given events up. */
  gaveUp(why) {
    this.#givenUp.push(String(why?.message ?? why).slice(0, 300));
  }

  /** Prints the last line and sets the exit status. */
  done() {
    clearInterval(this.#alive);
    print({
      type: 'done', sdk: this.sdk, version: this.version, exposures: this.#exposures, events: this.#events,
      ...(this.#givenUp.length > 0 && { given_up: this.#givenUp.length }), elapsed_ms: Date.now() - this.#started,
    });
    for (const host of new Set(this.#reached)) this.gaveUp(`reached for ${host}`);
    for (const why of new Set(this.#givenUp)) process.stderr.write(`${this.sdk}: ${why}\n`);
    process.exitCode = this.#givenUp.length > 0 ? 1 : 0;
  }
}

const print = (line) => process.stdout.write(JSON.stringify(line) + '\n');

async function logged(line, log) {
  const from = Date.now();
  const more = await log();
  print({ ...line, ...more, from, to: Date.now() });
}

/** Refuses every look-up of another host, and returns the list of those asked for. */
function stayHere() {
  const reached = [];
  const lookup = dns.lookup;
  dns.lookup = (host, options, done) => {
    const callback = typeof options === 'function' ? options : done;
    if (host === 'localhost' || /^[\d.]+$|:/.test(host)) {
      return lookup(host, options, done);
    }
    reached.push(host);
    process.nextTick(() => callback(Object.assign(new Error(`not on this machine: ${host}`), { code: 'ENOTFOUND' })));
  };
  return reached;
}

/**
 * Serves what an SDK fetches before it evaluates anything, on loopback. answer gets
 * the path and the body as text, and returns what is sent as JSON, or undefined
 * (404). The URL comes back, and a function that ends it.
 */
export async function serve(answer) {
  const server = http.createServer((req, res) => {
    const parts = [];
    req.on('data', (part) => parts.push(part));
    req.on('end', () => {
      const value = answer(new URL(req.url, 'http://localhost').pathname, Buffer.concat(parts).toString());
      res.writeHead(value === undefined ? 404 : 200, { 'Content-Type': 'application/json' });
      res.end(JSON.stringify(value ?? {}));
    });
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    close: () => { server.closeAllConnections(); server.close(); },
  };
}

/** Two variants by the user's number, so that none is right for all. */
export const half = (i, a, b) => (i % 2 ? a : b);
