"""Drives published Python SDKs against a collector, and prints as JSON lines what
it made them log.

    python drive.py SDK COLLECTOR_URL KEY RUN_ID [USERS]

SDK is one of those that `python drive.py` lists. Lines on standard output are those
of statsig-node's driver: {"type":"exposure","experiment","variant","rule",
"unit_type","unit_id","from","to"} and at the end {"type":"done","sdk","exposures"}.
Nothing but the collector is contacted: rules come from this file, or from a server
on loopback that this process runs.
"""

import http.server
import json
import sys
import threading
import time


def now():
    return int(time.time() * 1000)


class Run:
    def __init__(self, url, key, run, users):
        self.url, self.key, self.run, self.users = url.rstrip("/"), key, run, users
        self.count = 0

    def logged(self, line, log):
        start = now()
        more = log() or {}
        print(json.dumps({"type": "exposure", "rule": "", "unit_type": "user", **line, **more, "from": start, "to": now() + 1}))  # some SDKs round up
        self.count += 1

    def units(self):
        return [f"{self.run}-u{i}" for i in range(self.users)]


def serve(answers):
    """Answers GET and POST of given paths with JSON, from another thread."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            path = self.path.split("?")[0]
            length = int(self.headers.get("Content-Length") or 0)
            self.rfile.read(length)
            body = next((json.dumps(v).encode() for k, v in answers.items() if path.startswith(k)), b"{}")
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def statsig_specs(run):
    rule = lambda name, value: {
        "name": name, "groupName": name, "passPercentage": 100, "id": name, "salt": name, "returnValue": value,
        "conditions": [{"type": "public", "targetValue": None, "operator": None, "field": None, "additionalValues": {}, "isDeviceBased": False, "idType": "userID"}],
        "idType": "userID", "isExperimentGroup": True,
    }
    spec = lambda name, kind, value: {
        "name": name, "type": kind, "salt": name, "enabled": True, "defaultValue": value, "rules": [rule(f"{run}-rule", value)],
        "isDeviceBased": False, "idType": "userID", "entity": "experiment" if kind == "dynamic_config" else kind, "isActive": True,
    }
    return {
        "has_updates": True, "time": now(), "feature_gates": [spec(f"{run}-gate", "feature_gate", True)],
        "dynamic_configs": [spec(f"{run}-exp", "dynamic_config", {"v": "a"})], "layer_configs": [], "layers": {}, "id_lists": {},
    }


def statsig(r):
    from statsig import StatsigOptions, StatsigUser, statsig as s

    s.initialize(r.key, StatsigOptions(api_for_log_event=r.url + "/v1/", bootstrap_values=json.dumps(statsig_specs(r.run)),
                                       api="http://127.0.0.1:1/", local_mode=False, disable_diagnostics=True))
    for u in r.units():
        r.logged({"experiment": f"{r.run}-exp", "unit_id": u}, lambda: rule_of(s.get_experiment(StatsigUser(u), f"{r.run}-exp").rule_id))
    s.flush()
    s.shutdown()


def rule_of(rule):
    return {"variant": rule, "rule": rule}


def statsig_core(r):
    from statsig_python_core import Statsig, StatsigOptions, StatsigUser

    # The second version of the format: by name, with the conditions apart.
    rules = statsig_specs(r.run)
    config = rules["dynamic_configs"][0]
    config["rules"][0]["conditions"] = ["everybody"]
    rules.update(feature_gates={}, layer_configs={}, experiment_to_layer={}, dynamic_configs={config["name"]: config},
                 condition_map={"everybody": {"type": "public", "idType": "userID"}})
    specs = serve({"/v2/download_config_specs": rules})
    o = StatsigOptions()
    o.specs_url = specs + "/v2/download_config_specs"
    o.log_event_url = r.url + "/v1/log_event"
    s = Statsig(r.key, o)
    s.initialize().wait()
    for u in r.units():
        r.logged({"experiment": f"{r.run}-exp", "unit_id": u}, lambda: rule_of(s.get_experiment(StatsigUser(u), f"{r.run}-exp").rule_id))
    s.flush_events().wait()
    s.shutdown().wait()


def launchdarkly(r):
    import ldclient
    from ldclient import Config, Context
    from ldclient.integrations.test_data import TestData

    data = TestData.data_source()
    data.update(data.flag(f"{r.run}-exp").variations("a", "b").fallthrough_variation(1))
    ldclient.set_config(Config(r.key, update_processor_class=data, events_uri=r.url, diagnostic_opt_out=False))
    client = ldclient.get()
    # Test data do not ask for events of each evaluation; a reason with the flag does.
    data.update(data.flag(f"{r.run}-exp").variations("a", "b").fallthrough_variation(1))
    store = client._config.feature_store
    from ldclient.versioned_data_kind import FEATURES

    flag = dict(store.get(FEATURES, f"{r.run}-exp", lambda x: x).to_json_dict())
    flag["trackEvents"] = True
    flag["version"] += 1
    store.upsert(FEATURES, flag)
    for u in r.units():
        r.logged({"experiment": f"{r.run}-exp", "unit_id": u, "variant": "1"}, lambda: client.variation(f"{r.run}-exp", Context.create(u), "x") and None)
    client.flush()
    client.close()


def segment(r):
    import segment.analytics as analytics

    analytics.write_key, analytics.host = r.key, r.url
    for u in r.units():
        r.logged({"experiment": f"{r.run}-exp", "unit_id": u, "variant": "a"},
                 lambda: analytics.track(u, "Experiment Viewed", {"experiment_id": f"{r.run}-exp", "variation_id": "a"}) and None)
    analytics.flush()
    analytics.shutdown()


def posthog(r):
    from posthog import Posthog

    client = Posthog(r.key, host=r.url, disable_geoip=True)
    for u in r.units():
        r.logged({"experiment": f"{r.run}-exp", "unit_id": u, "variant": "a"},
                 lambda: client.capture("$feature_flag_called", distinct_id=u, properties={"$feature_flag": f"{r.run}-exp", "$feature_flag_response": "a"}) and None)
    client.flush()
    client.shutdown()


def amplitude(r):
    from amplitude import Amplitude, BaseEvent

    client = Amplitude(r.key)
    client.configuration.server_url = r.url + "/2/httpapi"
    for u in r.units():
        r.logged({"experiment": f"{r.run}-exp", "unit_id": u, "variant": "a"},
                 lambda: client.track(BaseEvent("$exposure", user_id=u, event_properties={"flag_key": f"{r.run}-exp", "variant": "a"})))
    for f in client.flush() or []:
        if f:
            f.result()
    client.shutdown()


def optimizely(r):
    from optimizely import event_dispatcher, optimizely as opt
    from optimizely.event.event_processor import ForwardingEventProcessor  # noqa: F401

    class Dispatcher(event_dispatcher.EventDispatcher):
        @staticmethod
        def dispatch_event(event):
            import urllib.request

            request = urllib.request.Request(r.url + "/v1/events", json.dumps(event.params).encode(), {"Content-Type": "application/json"})
            urllib.request.urlopen(request).read()

    data = {
        "version": "4", "rollouts": [], "typedAudiences": [], "anonymizeIP": True, "projectId": "1", "variables": [], "featureFlags": [],
        "experiments": [{"status": "Running", "key": f"{r.run}-exp", "layerId": "300", "trafficAllocation": [{"entityId": "30001", "endOfRange": 10000}],
                         "audienceIds": [], "variations": [{"variables": [], "id": "30001", "key": "a"}], "forcedVariations": {}, "id": f"{r.run}-exp"}],
        "audiences": [], "groups": [], "attributes": [], "botFiltering": False, "accountId": r.key, "events": [], "revision": "1",
    }
    client = opt.Optimizely(json.dumps(data), event_dispatcher=Dispatcher)
    for u in r.units():
        r.logged({"experiment": f"{r.run}-exp", "unit_type": "visitor", "unit_id": u, "variant": "30001", "rule": f"{r.run}-exp"}, lambda: client.activate(f"{r.run}-exp", u) and None)
    client.event_processor.stop()


def otlp(r):
    from opentelemetry._logs import LogRecord
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

    provider = LoggerProvider()
    provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(endpoint=r.url + "/v1/logs", headers={"x-api-key": r.key})))
    logger = provider.get_logger("openfeature")
    for u in r.units():
        r.logged({"experiment": f"{r.run}-exp", "unit_id": u, "variant": "a"}, lambda: logger.emit(LogRecord(
            timestamp=time.time_ns(), event_name="feature_flag.evaluation",
            attributes={"feature_flag.key": f"{r.run}-exp", "feature_flag.result.variant": "a", "feature_flag.context.id": u})))
    provider.force_flush()
    provider.shutdown()


SDKS = {"statsig": statsig, "statsig-core": statsig_core, "launchdarkly": launchdarkly, "segment": segment, "posthog": posthog,
        "amplitude": amplitude, "optimizely": optimizely, "otlp": otlp}


def main():
    if len(sys.argv) < 5 or sys.argv[1] not in SDKS:
        sys.exit("usage: python drive.py SDK COLLECTOR_URL KEY RUN_ID [USERS], SDK one of " + ", ".join(SDKS))
    sdk, url, key, run = sys.argv[1:5]
    r = Run(url, key, run, int(sys.argv[5]) if len(sys.argv) > 5 else 20)
    started = now()
    SDKS[sdk](r)
    print(json.dumps({"type": "done", "sdk": sdk, "exposures": r.count, "events": 0, "elapsed_ms": now() - started}))


main()
