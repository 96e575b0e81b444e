// The rules the SDK evaluates: one gate, one experiment behind a holdout gate,
// and one layer whose parameter is delegated to a second experiment. Groups are
// bucketed the way the console sets them up, so every exposure carries a rule
// that depends on the user. The names carry the run's id: a test can run many
// times against one database.

export function names(run) {
  return {
    gate: `${run}_new_checkout`,
    holdout: `${run}_holdout`,
    experiment: `${run}_button_color`,
    layer: `${run}_checkout_layer`,
    layerExperiment: `${run}_checkout_copy`,
    parameter: 'headline',
    event: `${run}_purchase`,
  };
}

/** The text for the SDK's bootstrapValues option. */
export function specs(run) {
  const n = names(run);
  return JSON.stringify({
    has_updates: true,
    time: 1700000000000,
    feature_gates: [
      gate(n.holdout, [rule('holdout_nobody', { pass: 0, conditions: [everyone()] })]),
      gate(n.gate, [rule('gate_half', { pass: 50, conditions: [everyone()] })]),
    ],
    dynamic_configs: [
      experiment(n.experiment, { color: 'grey' }, [
        // In the holdout: out of the experiment. Nobody is, but the gate is evaluated
        // on the way and comes as a secondary exposure.
        rule('layerAssignment', { conditions: [{ type: 'pass_gate', targetValue: n.holdout }] }),
        rule('group_control', { conditions: [bucketsBelow(500)], value: { color: 'blue' }, group: 'Control' }),
        rule('group_test', { conditions: [bucketsBelow(1000)], value: { color: 'green' }, group: 'Test' }),
      ]),
      experiment(n.layerExperiment, { headline: 'Hello' }, [
        rule('copy_control', { conditions: [bucketsBelow(500)], value: { headline: 'Buy now' }, group: 'Control' }),
        rule('copy_test', { conditions: [bucketsBelow(1000)], value: { headline: 'Yours today' }, group: 'Test' }),
      ], [n.parameter]),
    ],
    layer_configs: [
      spec('dynamic_config', 'layer', n.layer, { headline: 'Hello', size: 12 }, [
        rule('experimentAssignment', { conditions: [everyone()], delegate: n.layerExperiment }),
      ]),
    ],
    layers: { [n.layer]: [n.layerExperiment] },
    diagnostics: {},
    id_lists: {},
  });
}

const everyone = () => ({ type: 'public', targetValue: null });

const bucketsBelow = (n) => ({
  type: 'user_bucket', operator: 'lt', targetValue: n, additionalValues: { salt: 'sluice' }, idType: 'userID',
});

function rule(id, { pass = 100, conditions, value = true, group = null, delegate = null }) {
  return {
    name: id, id, salt: id, passPercentage: pass, idType: 'userID', conditions, returnValue: value,
    groupName: group, configDelegate: delegate, isExperimentGroup: group !== null,
  };
}

function spec(type, entity, name, defaultValue, rules, explicitParameters) {
  return {
    name, type, entity, salt: name, enabled: true, isActive: true, idType: 'userID', defaultValue, rules,
    explicitParameters, version: 7,
  };
}

const gate = (name, rules) => spec('feature_gate', 'feature_gate', name, false, rules);

const experiment = (name, defaultValue, rules, explicitParameters = []) =>
  spec('dynamic_config', 'experiment', name, defaultValue, rules, explicitParameters);
