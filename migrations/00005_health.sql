-- Whether an experiment's exposures can be trusted. Chi-squared tests: their tail
-- probability has a closed form for whole degrees of freedom (Abramowitz and
-- Stegun, 26.4.4 and 26.4.5), summed in logarithms so that no term overflows.
--
-- srm_p_value: that the units' first variants split as unevenly as they do, or
-- more, where all are equally likely. lost_p_value: that what the loggers report
-- as lost (events named sluice.dropped) is as unevenly spread over the variants,
-- or more, where loss does not depend on the variant.
CREATE OR REPLACE VIEW experiment_health {{on}} AS
WITH
    (chi2, freedom) -> if(freedom < 1 OR chi2 <= 0, 1., least(1.,
        if(freedom % 2 = 1, erfc(sqrt(chi2 / 2)), 0.)
        + arraySum(i -> exp((i + (freedom % 2) / 2) * log(chi2 / 2) - chi2 / 2 - lgamma(i + 1 + (freedom % 2) / 2)),
                   range(toUInt64(intDiv(freedom, 2)))))) AS tail
SELECT * EXCEPT kept_and_lost FROM
(
    SELECT
        project,
        experiment,
        sum(variant_units)                                                       AS units,
        sum(variant_exposures)                                                   AS exposures,
        mapFromArrays(groupArrayIf(variant, variant_units > 0), groupArrayIf(variant_units, variant_units > 0)) AS variants,
        tail(arraySum(n -> pow(n - units / length(variants), 2) / (units / length(variants)), mapValues(variants)),
             toInt64(length(variants)) - 1)                                      AS srm_p_value,
        if(units = 0, 0., sum(crossed) / units)                                  AS crossover_share,
        if(exposures = 0, 0., sum(late) / exposures)                             AS late_share,
        mapFromArrays(groupArrayIf(variant, variant_lost > 0), groupArrayIf(variant_lost, variant_lost > 0)) AS lost,
        sum(variant_lost) / greatest(1, sum(variant_lost) + exposures)           AS lost_share,
        groupArrayIf((variant_exposures, variant_lost), variant_exposures + variant_lost > 0) AS kept_and_lost,
        if(lost_share = 0 OR lost_share = 1, 1.,
            tail(arraySum(n -> pow(n.2 - (n.1 + n.2) * lost_share, 2) / ((n.1 + n.2) * lost_share)
                             + pow(n.1 - (n.1 + n.2) * (1 - lost_share), 2) / ((n.1 + n.2) * (1 - lost_share)), kept_and_lost),
                 toInt64(length(kept_and_lost)) - 1))                            AS lost_p_value
    FROM
    (
        SELECT project, experiment, variant, sum(u) AS variant_units, sum(c) AS crossed, sum(e) AS variant_exposures, sum(l) AS late, sum(d) AS variant_lost
        FROM
        (
            SELECT project, toString(experiment) AS experiment, toString(first_variant) AS variant, count() AS u, countIf(variants > 1) AS c,
                toUInt64(0) AS e, toUInt64(0) AS l, toUInt64(0) AS d
            FROM first_exposures GROUP BY project, experiment, variant
            UNION ALL
            SELECT project, toString(experiment), toString(variant), 0, 0, count(), countIf(received_at > time + INTERVAL 1 HOUR), 0
            FROM exposures FINAL GROUP BY project, experiment, variant
            UNION ALL
            SELECT project, attributes['experiment'], attributes['variant'], 0, 0, 0, 0, toUInt64(greatest(0, sum(ifNull(value, 0))))
            FROM events FINAL WHERE name = 'sluice.dropped' AND attributes['experiment'] != ''
            GROUP BY project, attributes['experiment'], attributes['variant']
        )
        GROUP BY project, experiment, variant
    )
    GROUP BY project, experiment
);
