// Drives the published Statsig Node SDK against a collector, and prints as JSON
// lines what it made the SDK log, for a test to look for in ClickHouse.
//
//   node drive.mjs COLLECTOR_URL SDK_KEY RUN_ID [USERS] [PAUSE_MS]
//
// COLLECTOR_URL without a path (http://127.0.0.1:8080); SDK_KEY is the write key
// and must start with "secret-" (the SDK insists); RUN_ID goes into every name,
// letters, digits, _ and -; USERS defaults to 20. With PAUSE_MS there is a pause after
// each user, and the SDK sends what it has every 300 ms instead of all at the end.
//
// Lines on standard output:
//   {"type":"exposure","of":"gate"|"config"|"layer","experiment","variant","rule","unit_type","unit_id",
//    "layer","parameter","secondary"?,"from","to"}     from and to: the event's time lies between, epoch ms
//   {"type":"event","name","value","text"?,"attributes","unit_type","unit_id","from","to"}
//   {"type":"done","sdk","version","exposures","events","elapsed_ms"}
// Exit status: 0 the SDK reported delivery; 1 it gave events up, or tried to reach
// another host; 2 wrong arguments.
//
// Nothing is fetched: the rules come from bootstrapValues, both kinds of sync are
// off. The SDK resends on anything but a 2xx: the first time after RETRY_MS, then
// after ten times as long each, so two refusals cost 0.55 s and three 5.5 s. A
// failed resend is tried again by each attempt that led to it, so the SDK takes 15
// sends and 42 s to give a batch up (measured).

import dns from 'node:dns';
import { createRequire } from 'node:module';
import statsigModule from 'statsig-node';
import { names, specs } from './specs.mjs';

const RETRY_MS = 50;
const RETRIES = 3;

const statsig = statsigModule.default ?? statsigModule;
const version = createRequire(import.meta.url)('statsig-node/package.json').version;
const print = (line) => process.stdout.write(JSON.stringify(line) + '\n');

const [url, key, run, users = '20', pause = '0'] = process.argv.slice(2);
if (!url || !key?.startsWith('secret-') || !/^[\w-]+$/.test(run ?? '') || !/^[1-9]\d{0,3}$/.test(users) || !/^\d{1,5}$/.test(pause)) {
  process.stderr.write('usage: node drive.mjs COLLECTOR_URL secret-KEY RUN_ID [USERS] [PAUSE_MS]\n');
  process.exit(2);
}

// The SDK reports its own failures ("Log event failed" among them) to its vendor.
// Refusing every look-up keeps the run on this machine, and the attempt is the
// only sign the SDK gives that it has given a batch up.
const reached = [];
const realLookup = dns.lookup;
dns.lookup = (host, options, done) => {
  const callback = typeof options === 'function' ? options : done;
  if (host === 'localhost' || host === new URL(url).hostname) {
    return realLookup(host, options, done);
  }
  reached.push(host);
  process.nextTick(() => callback(Object.assign(new Error(`not on this machine: ${host}`), { code: 'ENOTFOUND' })));
};

// The SDK's timers do not keep the process alive, and a resend waits on one.
const alive = setInterval(() => {}, 1000);
const started = Date.now();

await statsig.initialize(key, {
  api: `${url.replace(/\/$/, '')}/v1`,
  bootstrapValues: specs(run),
  disableRulesetsSync: true,
  disableIdListsSync: true,
  initStrategyForIDLists: 'none',
  initStrategyForIP3Country: 'none',
  environment: { tier: 'production' },
  loggingIntervalMs: pause === '0' ? 3_600_000 : 300, // without a pause: one batch, when flush is called
  postLogsRetryLimit: RETRIES,
  postLogsRetryBackoff: RETRY_MS,
});

const n = names(run);
let exposures = 0;
let events = 0;

/** Runs what logs one event and prints the event with the time it must carry. */
function logged(line, log) {
  const from = Date.now();
  const more = log();
  print({ ...line, ...more, from, to: Date.now() });
  if (line.type === 'exposure') exposures++; else events++;
}

function visit(user, unit) {
  logged({ type: 'exposure', of: 'gate', ...unit }, () => {
    const gate = statsig.getFeatureGateSync(user, n.gate);
    return { experiment: n.gate, variant: String(gate.value), rule: gate.ruleID };
  });
  logged({ type: 'exposure', of: 'config', ...unit }, () => {
    const rule = statsig.getExperimentSync(user, n.experiment).getRuleID();
    return { experiment: n.experiment, variant: rule, rule, secondary: n.holdout };
  });
  logged({ type: 'exposure', of: 'layer', ...unit }, () => {
    const layer = statsig.getLayerSync(user, n.layer);
    layer.get(n.parameter, ''); // this is what logs
    const rule = layer.getRuleID();
    return { experiment: n.layerExperiment, variant: rule, rule, layer: n.layer, parameter: n.parameter };
  });
}

for (let i = 0; i < Number(users); i++) {
  const userID = `${run}-u${i}`;
  const unit = { unit_type: 'user', unit_id: userID };
  const user = {
    userID,
    email: `${userID}@example.com`,
    country: 'DE',
    custom: { plan: i % 2 ? 'pro' : 'free' },
    privateAttributes: { salary: '12345' },
  };
  visit(user, unit);
  logged({ type: 'event', name: n.event, ...unit }, () => {
    const value = i + 0.25;
    const sku = `SKU-${i}`;
    statsig.logEvent(user, n.event, value, { sku });
    return { value, attributes: { sku } };
  });
  if (pause !== '0') await new Promise((done) => setTimeout(done, Number(pause)));
}

// Known by another id only, with a value that is text.
const company = { unit_type: 'companyID', unit_id: `${run}-c0` };
const firm = { customIDs: { companyID: company.unit_id } };
visit(firm, company);
logged({ type: 'event', name: n.event, ...company }, () => {
  statsig.logEvent(firm, n.event, 'Grüße "quoted"', {});
  return { value: null, text: 'Grüße "quoted"', attributes: {} };
});

await statsig.flush(); // resends; what shutdown flushes by itself is sent once only
await statsig.shutdownAsync();
clearInterval(alive);

print({ type: 'done', sdk: 'statsig-node', version, exposures, events, elapsed_ms: Date.now() - started });
if (reached.length > 0) {
  process.stderr.write(`the SDK gave up, or reached for ${[...new Set(reached)].join(', ')}\n`);
  process.exitCode = 1;
}
