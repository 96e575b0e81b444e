-- Plain views: computed when asked, so they never disagree with their tables.
CREATE OR REPLACE VIEW first_exposures {{on}} AS
SELECT
    project,
    experiment,
    unit_type,
    unit_id,
    argMin(variant, (time, event_id)) AS first_variant,
    min(time)                         AS first_time,
    uniqExact(variant)                AS variants,
    count()                           AS exposures
FROM exposures FINAL
GROUP BY project, experiment, unit_type, unit_id;

CREATE OR REPLACE VIEW exposures_hourly {{on}} AS
SELECT
    project,
    experiment,
    variant,
    toStartOfHour(time)            AS hour,
    count()                        AS exposures,
    uniqExact(unit_type, unit_id)  AS units
FROM exposures FINAL
GROUP BY project, experiment, variant, hour;
