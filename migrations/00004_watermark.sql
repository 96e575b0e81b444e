-- Up to when everything is stored, as the copier of the ledger has found. A row
-- with a collector is about that collector; one without, about all collectors of
-- a ledger topic; the one without a ledger is about everything in the database.
-- Of the rows of one key the one with the latest complete_until stays: what was
-- once true of a time stays true, so a copier that was paused and writes what it
-- found long ago changes nothing.
CREATE TABLE IF NOT EXISTS completeness {{on}}
(
    ledger         String,
    collector      UUID,
    complete_until DateTime64(6, 'UTC'),
    topic          LowCardinality(String),
    state          LowCardinality(String),
    held_by        UUID,
    why            String,
    collectors     UInt32,
    epoch          UInt64,
    number         UInt64,
    pending        UInt64,
    pending_bytes  Int64,
    lost           UInt64,
    heard_at       DateTime64(6, 'UTC'),
    judged_at      DateTime64(6, 'UTC')
)
ENGINE = {{engine "ReplacingMergeTree" "complete_until"}}
ORDER BY (ledger, collector)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- One row, always: aggregates without GROUP BY. Before any sink has looked,
-- complete_until is 1970.
CREATE OR REPLACE VIEW delivery_watermark {{on}} AS
SELECT
    max(c.complete_until)                                            AS complete_until,
    argMax(c.held_by, (c.complete_until, c.judged_at))               AS held_by,
    multiIf(count() = 0, 'no sink has looked yet',
            max(c.judged_at) < now64(6) - INTERVAL 1 MINUTE,
            concat('no sink has looked since ', toString(max(c.judged_at))),
            argMax(c.why, (c.complete_until, c.judged_at)))          AS held_why,
    argMax(c.collectors, (c.complete_until, c.judged_at))            AS collectors,
    greatest(0, (toUnixTimestamp64Micro(now64(6)) - toUnixTimestamp64Micro(max(c.complete_until))) / 1000000) AS behind_seconds,
    max(c.judged_at)                                                 AS judged_at
FROM completeness AS c
WHERE c.ledger = '' AND c.collector = toUUID('00000000-0000-0000-0000-000000000000');

-- One row a collector. One that has moved to another ledger topic (made anew, or
-- of another cluster) is shown as that one's copier sees it.
CREATE OR REPLACE VIEW delivery_watermark_collectors {{on}} AS
SELECT
    c.collector                         AS collector,
    max(c.complete_until)               AS complete_until,
    argMax(c.state, c.judged_at)         AS state,
    argMax(c.why, c.judged_at)           AS why,
    argMax(c.heard_at, c.judged_at)      AS heard_at,
    argMax(c.pending, c.judged_at)       AS pending,
    argMax(c.pending_bytes, c.judged_at) AS pending_bytes,
    argMax(c.lost, c.judged_at)          AS lost,
    argMax(c.epoch, c.judged_at)         AS epoch,
    argMax(c.number, c.judged_at)        AS number,
    argMax(c.ledger, c.judged_at)        AS ledger,
    max(c.judged_at)                     AS judged_at
FROM completeness AS c
WHERE c.collector != toUUID('00000000-0000-0000-0000-000000000000')
GROUP BY c.collector;
