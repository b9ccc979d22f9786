{% from 'macros.sql' import all_gaps, greatest, least, now, seconds %}
{# A job's life is from its registration to its end, or now. What no gap of its cluster covers was observed; gaps that
   overlap or touch are one stretch. #}
SELECT
    l.cluster,
    l.jid,
    CASE WHEN l.seconds > 0 THEN 1.0 - coalesce(sum(l.unobserved), 0.0) / l.seconds ELSE 1.0 END AS covered_share,
    coalesce(max(l.unobserved), 0.0) AS longest_unobserved_seconds
FROM (
    SELECT
        j.id, j.cluster, j.jid, {{ seconds('j.registered_at', 'j.until_at') }} AS seconds,
        CASE WHEN g.began_at IS NOT NULL THEN
            {{ seconds(greatest('g.began_at', 'j.registered_at'), least('g.ended_at', 'j.until_at')) }}
        END AS unobserved
    FROM (
        SELECT id, cluster, jid, registered_at, coalesce(ended_by, {{ now() }}) AS until_at FROM jobs
    ) j
    LEFT JOIN (
        SELECT cluster, min(began_at) AS began_at, max(ended_at) AS ended_at
        FROM (
            SELECT
                b.*,
                sum(b.is_new) OVER (PARTITION BY b.cluster ORDER BY b.began_at, b.ended_at ROWS UNBOUNDED PRECEDING) AS stretch
            FROM (
                SELECT
                    a.cluster, a.began_at, a.ended_at,
                    CASE WHEN a.began_at <= max(a.ended_at) OVER (
                        PARTITION BY a.cluster ORDER BY a.began_at, a.ended_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                    ) THEN 0 ELSE 1 END AS is_new
                FROM (
                    SELECT cluster, began_at, coalesce(ended_at, {{ now() }}) AS ended_at
                    FROM (
                        {{ all_gaps() }}
                    ) o
                ) a
            ) b
        ) c
        GROUP BY cluster, stretch
    ) g ON g.cluster = j.cluster AND g.began_at < j.until_at AND g.ended_at > j.registered_at
) l
GROUP BY l.id, l.cluster, l.jid, l.seconds
