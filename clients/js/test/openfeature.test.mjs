// The hook with the published SDKs and a provider in memory.

import assert from 'node:assert/strict';
import test from 'node:test';
import * as server from '@openfeature/server-sdk';
import * as web from '@openfeature/web-sdk';
import { exposureHook } from '../dist/openfeature.js';

const flags = {
  gate: { variants: { on: true, off: false }, defaultVariant: 'on', disabled: false },
  text: { variants: { red: '#f00' }, defaultVariant: 'red', disabled: false, contextEvaluator: () => 'red' },
  shape: { variants: { big: { a: [1] } }, defaultVariant: 'big', disabled: false },
};

/** Resolves without naming a variant, with metadata. */
const plain = {
  metadata: { name: 'plain' },
  runsOn: undefined,
  resolveBooleanEvaluation: (_, value) => ({ value: !value, reason: 'SPLIT', flagMetadata: { version: 7, owner: 'x' } }),
  resolveStringEvaluation: (_, value) => ({ value, reason: 'ERROR', errorCode: 'FLAG_NOT_FOUND' }),
  resolveNumberEvaluation: () => ({ value: 2.5, reason: 'STATIC' }),
  resolveObjectEvaluation: () => ({ value: { a: [1] }, reason: 'STATIC' }),
};

const context = { targetingKey: 'u1', kind: 'company', companyId: 'c1' };

for (const [name, sdk] of [['server', server], ['web', web]]) {
  const { OpenFeature, InMemoryProvider } = sdk;
  /** Evaluates, and returns the exposures and the hook. */
  const run = async (provider, options, evaluate, ctx = context) => {
    const seen = [];
    const hook = exposureHook({ exposure: (e) => seen.push(e) }, options);
    await OpenFeature.clearProviders?.();
    if (name === 'web') await OpenFeature.setContext(ctx);
    await OpenFeature.setProviderAndWait(provider);
    const client = OpenFeature.getClient();
    if (name === 'server') client.setContext(ctx);
    client.addHooks(hook);
    await evaluate(client);
    return { seen, hook };
  };

  test(`${name}: variant, reason and unit`, async () => {
    const { seen, hook } = await run(new InMemoryProvider(flags), { unitType: (c) => c.kind }, async (c) => {
      await c.getBooleanValue('gate', false);
      await c.getStringValue('text', 'none');
      await c.getObjectValue('shape', {});
    });
    assert.deepEqual(seen.map((e) => [e.experiment, e.variant, e.unitId, e.unitType, e.reason]), [
      ['gate', 'on', 'u1', 'company', 'STATIC'], ['text', 'red', 'u1', 'company', 'TARGETING_MATCH'], ['shape', 'big', 'u1', 'company', 'STATIC'],
    ]);
    assert.equal(hook.counts.exposures, 3);
  });

  test(`${name}: without a variant its value; metadata as attributes`, async () => {
    const { seen } = await run({ ...plain, runsOn: name === 'web' ? 'client' : 'server' }, {}, async (c) => {
      await c.getBooleanValue('b', false);
      await c.getNumberValue('n', 1);
      await c.getObjectValue('o', {});
    });
    assert.deepEqual(seen.map((e) => [e.variant, e.attributes]), [['true', { version: 7, owner: 'x' }], ['2.5', {}], ['{"a":[1]}', {}]]);
  });

  test(`${name}: an error is no exposure, unless asked for`, async () => {
    for (const errors of [false, true]) {
      const { seen, hook } = await run({ ...plain, runsOn: name === 'web' ? 'client' : 'server' }, { errors }, async (c) => {
        assert.equal(await c.getStringValue('s', 'mine'), 'mine');
      });
      assert.deepEqual(seen.map((e) => [e.variant, e.reason, e.attributes.error_code]), errors ? [['mine', 'ERROR', 'FLAG_NOT_FOUND']] : []);
      assert.equal(hook.counts.errors, 1);
    }
  });

  test(`${name}: no targetingKey, other units, filters, and a host's own mistakes`, async () => {
    const evaluate = (c) => c.getBooleanValue('gate', false);
    let r = await run(new InMemoryProvider(flags), {}, evaluate, {});
    assert.equal(r.hook.counts.withoutUnit, 1);
    assert.equal(r.seen[0].unitId, '', 'the logger counts it as invalid');
    r = await run(new InMemoryProvider(flags), { unitId: (c) => c.companyId, unitType: 'company', experiment: (k) => 'x-' + k }, evaluate);
    assert.deepEqual([r.seen[0].experiment, r.seen[0].unitType, r.seen[0].unitId], ['x-gate', 'company', 'c1']);
    r = await run(new InMemoryProvider(flags), { filter: (_, d) => d.reason !== 'STATIC' }, evaluate);
    assert.deepEqual([r.seen.length, r.hook.counts.filtered], [0, 1]);
    r = await run(new InMemoryProvider(flags), { filter: () => { throw new Error('mine'); } }, async (c) => assert.equal(await evaluate(c), true));
    assert.equal(r.hook.counts.errors, 1);
  });
}
