-- What the collectors report about themselves, copied from the ledger topic by the
-- sink that has partition 0.
--
-- entry tells what a row is kept for:
--   newest      the record of an epoch with the highest number; one for each log its
--               offsets were in, so that what it said of an earlier log stays
--   open        the opening record of an epoch: of several attempts the first
--   retire      an operator has given the collector up, as it was at epoch and number
--   unreadable  a record that cannot be read, of the collector its key names
-- version is such that the row to keep has the highest: newest: number; open: the
-- append time counted down; retire, unreadable: the append time. So rows may come
-- in any order, twice, and from two copiers at once. That is also why nothing here
-- needs a deduplication window.
CREATE TABLE IF NOT EXISTS ledger {{on}}
(
    collector      UUID,
    epoch          UInt64,
    entry          Enum8('newest' = 1, 'open' = 2, 'retire' = 3, 'unreadable' = 4),
    log            LowCardinality(String),
    version        UInt64,
    number         UInt64,
    kind           LowCardinality(String),
    at             DateTime64(6, 'UTC'),
    settled        UInt64,
    voids          Array(Tuple(UInt64, UInt64)),
    unproven       UInt64,
    complete_until DateTime64(6, 'UTC'),
    offsets        Map(UInt32, Int64),
    pending        UInt64,
    pending_bytes  Int64,
    oldest         Nullable(DateTime64(6, 'UTC')),
    spool          LowCardinality(String),
    lost           UInt64,
    lost_from      Nullable(DateTime64(6, 'UTC')),
    by             String,
    reason         String,
    ledger         LowCardinality(String),
    topic          LowCardinality(String),
    offset         UInt64,
    appended_at    DateTime64(6, 'UTC'),
    copied_at      DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = {{engine "ReplacingMergeTree" "version"}}
ORDER BY (collector, epoch, entry, log)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
