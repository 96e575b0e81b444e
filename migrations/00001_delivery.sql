-- What the pipeline delivers, and the book it keeps of it.
--
-- exposures and events: the sorting key holds only values that every copy of an
-- event shares, so copies that no earlier guard caught collapse on a merge, and
-- count once through FINAL. Not time: a copy may have been stamped later.
-- Partitions are months of receipt: a block lands in one (two around midnight
-- at the turn of a month), so an insert is one part, there or not there.
-- The minmax indexes serve the sink's question which rows of a range of offsets
-- are there.
CREATE TABLE IF NOT EXISTS exposures {{on}}
(
    project       LowCardinality(String),
    experiment    LowCardinality(String),
    variant       LowCardinality(String),
    unit_type     LowCardinality(String),
    unit_id       String,
    time          DateTime64(6, 'UTC')   CODEC(Delta, ZSTD(1)),
    received_at   DateTime64(6, 'UTC')   CODEC(Delta, ZSTD(1)),
    rule          LowCardinality(String),
    reason        LowCardinality(String),
    attributes    Map(LowCardinality(String), String),
    time_adjusted Bool,
    event_id      UUID,
    batch_id      UUID,
    batch_index   UInt32,
    source        LowCardinality(String),
    sdk           LowCardinality(String),
    log           LowCardinality(String),
    topic         LowCardinality(String),
    partition     UInt32,
    offset        UInt64,
    INDEX offsets offset TYPE minmax GRANULARITY 1,
    INDEX received received_at TYPE minmax GRANULARITY 1,
    INDEX batch batch_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {{engine "ReplacingMergeTree"}}
PARTITION BY toYYYYMM(received_at)
ORDER BY (project, experiment, unit_id, event_id)
SETTINGS {{window}}, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS events {{on}}
(
    project       LowCardinality(String),
    name          LowCardinality(String),
    value         Nullable(Float64),
    unit_type     LowCardinality(String),
    unit_id       String,
    time          DateTime64(6, 'UTC')   CODEC(Delta, ZSTD(1)),
    received_at   DateTime64(6, 'UTC')   CODEC(Delta, ZSTD(1)),
    attributes    Map(LowCardinality(String), String),
    time_adjusted Bool,
    event_id      UUID,
    batch_id      UUID,
    batch_index   UInt32,
    source        LowCardinality(String),
    sdk           LowCardinality(String),
    log           LowCardinality(String),
    topic         LowCardinality(String),
    partition     UInt32,
    offset        UInt64,
    INDEX offsets offset TYPE minmax GRANULARITY 1,
    INDEX received received_at TYPE minmax GRANULARITY 1,
    INDEX batch batch_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {{engine "ReplacingMergeTree"}}
PARTITION BY toYYYYMM(received_at)
ORDER BY (project, name, unit_id, event_id)
SETTINGS {{window}}, fsync_after_insert = 1, fsync_part_directory = 1;

-- id is the same for every copy of a dead letter.
CREATE TABLE IF NOT EXISTS dead_letters {{on}}
(
    project     LowCardinality(String),
    stage       LowCardinality(String),
    reason      LowCardinality(String),
    field       LowCardinality(String),
    error       String,
    bytes       String CODEC(ZSTD(3)),
    size        UInt64,
    id          UUID,
    batch_id    UUID,
    batch_index UInt32,
    source      LowCardinality(String),
    received_at DateTime64(6, 'UTC'),
    dead_at     DateTime64(6, 'UTC') DEFAULT now64(6),
    log         LowCardinality(String),
    topic       LowCardinality(String),
    partition   UInt32,
    offset      UInt64,
    INDEX offsets offset TYPE minmax GRANULARITY 1,
    INDEX received received_at TYPE minmax GRANULARITY 1
)
ENGINE = {{engine "ReplacingMergeTree"}}
PARTITION BY toYYYYMM(received_at)
ORDER BY (project, stage, reason, id)
SETTINGS {{window}}, fsync_after_insert = 1, fsync_part_directory = 1;

-- One row a record. Ordered by what the sink looks up, in small granules: an IN
-- query for the batches of a block reads little. By batch first and not by
-- dedup_id alone, so that every part of a batch is found with it: a copy may have
-- been split differently (docs/adr/0006). No time partitions: a copy must be found
-- wherever in time it lies. The time to live is the dedup window, which the sink
-- keeps in step with its setting.
CREATE TABLE IF NOT EXISTS batches {{on}}
(
    dedup_id    UUID,
    batch_id    UUID,
    digest      FixedString(16),
    part        String,
    project     LowCardinality(String),
    source      LowCardinality(String),
    collector   UUID,
    epoch       UInt64,
    seq         UInt64,
    outcome     Enum8('stored' = 1, 'duplicate' = 2, 'conflict' = 3, 'dead' = 4),
    path        Enum8('direct' = 1, 'spool' = 2),
    events      UInt32,
    rejected    UInt32,
    received_at DateTime64(6, 'UTC'),
    stored_at   DateTime64(6, 'UTC') DEFAULT now64(6),
    log         LowCardinality(String),
    topic       LowCardinality(String),
    partition   UInt32,
    offset      UInt64,
    INDEX offsets offset TYPE minmax GRANULARITY 32
)
ENGINE = {{engine "ReplacingMergeTree"}}
ORDER BY (batch_id, dedup_id, log, partition, offset)
TTL toDateTime(stored_at) + INTERVAL 2592000 SECOND
SETTINGS index_granularity = 256, {{window}}, fsync_after_insert = 1, fsync_part_directory = 1;

-- How far each partition is stored: the newest row of a partition counts.
CREATE TABLE IF NOT EXISTS progress {{on}}
(
    log       LowCardinality(String),
    topic     LowCardinality(String),
    partition UInt32,
    first     UInt64,
    through   UInt64,
    stored_at DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = {{engine "ReplacingMergeTree" "through"}}
ORDER BY (log, topic, partition)
SETTINGS {{window}}, fsync_after_insert = 1, fsync_part_directory = 1;

-- Partitions a sink stopped because going on would lose or repeat something. A
-- person resumes them (sluice resume), which is recorded here too.
CREATE TABLE IF NOT EXISTS stops {{on}}
(
    log        LowCardinality(String),
    topic      LowCardinality(String),
    partition  UInt32,
    offset     Int64,
    reason     LowCardinality(String),
    detail     String,
    resume_at  Int64,
    state      Enum8('stopped' = 1, 'resumed' = 2),
    by         String,
    at         DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = {{engine "ReplacingMergeTree" "at"}}
ORDER BY (log, topic, partition, offset, state);
