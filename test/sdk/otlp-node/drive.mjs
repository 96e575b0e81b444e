// Drives OpenTelemetry's OTLP/HTTP log exporters; see ../driver.mjs for arguments and
// lines. JSON, or protobuf and gzip with OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf in
// the environment. The key is a header that the user sets: Authorization with JSON,
// X-API-Key with protobuf.
//
// An exporter sends a batch up to six times, on 429, 502, 503, 504 and where the
// connection failed: again after 1 s, 1.5 times as long each time up to 5 s (a fifth
// more or less), or as Retry-After says, as long as its time-out leaves room.

import { OTLPLogExporter as JSONExporter } from '@opentelemetry/exporter-logs-otlp-http';
import { OTLPLogExporter as ProtobufExporter } from '@opentelemetry/exporter-logs-otlp-proto';
import { SeverityNumber } from '@opentelemetry/api-logs';
import { resourceFromAttributes } from '@opentelemetry/resources';
import { BatchLogRecordProcessor, LoggerProvider } from '@opentelemetry/sdk-logs';
import { half, start } from '../driver.mjs';

const protobuf = process.env.OTEL_EXPORTER_OTLP_PROTOCOL === 'http/protobuf';
const r = start({ sdk: `@opentelemetry/exporter-logs-otlp-${protobuf ? 'proto' : 'http'}`, at: import.meta.url });
const exporter = protobuf
  ? new ProtobufExporter({ url: `${r.url}/v1/logs`, headers: { 'x-api-key': r.key }, compression: 'gzip', timeoutMillis: 30_000 })
  : new JSONExporter({ url: `${r.url}/v1/logs`, headers: { Authorization: `Bearer ${r.key}` }, timeoutMillis: 30_000 });
// The processor tells nobody whether a batch arrived.
const send = exporter.export.bind(exporter);
exporter.export = (records, done) => send(records, (result) => {
  if (result.code !== 0) r.gaveUp(result.error);
  done(result);
});
const provider = new LoggerProvider({
  resource: resourceFromAttributes({ 'service.name': 'shop' }),
  processors: [new BatchLogRecordProcessor({
    exporter, maxExportBatchSize: 15, scheduledDelayMillis: r.pause ? 300 : 60_000, exportTimeoutMillis: 30_000,
  })],
});
const logger = provider.getLogger('openfeature');

for (const [user, i] of r.units()) {
  const variant = half(i, 'treatment', 'control');
  const kind = i % 5 === 4 ? { 'feature_flag.context.kind': 'company' } : {};
  const unit = { unit_type: i % 5 === 4 ? 'company' : 'user', unit_id: user };
  await r.exposure({ experiment: `${r.run}-checkout`, variant, reason: 'split', ...unit }, () => {
    logger.emit({
      eventName: 'feature_flag.evaluation', severityNumber: SeverityNumber.INFO,
      attributes: {
        'feature_flag.key': `${r.run}-checkout`, 'feature_flag.result.variant': variant, 'feature_flag.result.reason': 'split',
        'feature_flag.context.id': user, 'feature_flag.provider.name': 'sluice-test', 'feature_flag.set.id': 'shop',
        'feature_flag.version': '42', ...kind,
      },
    });
  });
  await r.event({ name: `${r.run}-purchase`, value: null, ...unit, attributes: { amount: String(i + 0.25) } }, () => {
    logger.emit({ eventName: `${r.run}-purchase`, attributes: { 'feature_flag.context.id': user, amount: i + 0.25, ...kind } });
  });
  await r.rest();
}
// An ordinary line of a log, which is nobody's event.
logger.emit({ body: 'checkout took 12 ms', severityNumber: SeverityNumber.DEBUG });
await provider.forceFlush();
await provider.shutdown();
r.done();
