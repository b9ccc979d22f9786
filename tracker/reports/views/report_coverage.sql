{% from 'macros.sql' import all_gaps, greatest, least, length, now %}
{# A job's life is from its registration to its end, or now. What no gap of its cluster covers was observed; gaps that
   overlap or touch are one stretch. In whole microseconds, so that both databases come to the same. #}
{% set piece = length(greatest('s.began_at', 'l.began_at'), least('s.ended_at', 'l.ended_at')) %}
WITH all_gaps AS (
    {{ all_gaps() }}
),
stretches AS (
    SELECT n.cluster, min(n.began_at) AS began_at, max(n.ended_at) AS ended_at
    FROM (
        SELECT
            f.*, sum(f.is_first) OVER (PARTITION BY f.cluster ORDER BY f.began_at, f.ended_at ROWS UNBOUNDED PRECEDING) AS stretch
        FROM (
            SELECT
                g.cluster, g.began_at, coalesce(g.ended_at, {{ now() }}) AS ended_at,
                CASE WHEN g.began_at <= max(coalesce(g.ended_at, {{ now() }})) OVER (
                    PARTITION BY g.cluster ORDER BY g.began_at, coalesce(g.ended_at, {{ now() }})
                    ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                ) THEN 0 ELSE 1 END AS is_first
            FROM all_gaps g
        ) f
    ) n
    GROUP BY n.cluster, n.stretch
),
lives AS (
    SELECT
        j.cluster, j.jid, j.registered_at AS began_at,
        {{ greatest('j.registered_at', 'coalesce(j.ended_by, ' ~ now() ~ ')') }} AS ended_at
    FROM jobs j
),
unobserved AS (
    SELECT
        l.cluster, l.jid, {{ length('l.began_at', 'l.ended_at') }} AS life,
        coalesce(sum({{ piece }}) FILTER (WHERE s.cluster IS NOT NULL), 0) AS total,
        coalesce(max({{ piece }}) FILTER (WHERE s.cluster IS NOT NULL), 0) AS longest
    FROM lives l
    LEFT JOIN stretches s ON s.cluster = l.cluster AND s.began_at < l.ended_at AND s.ended_at > l.began_at
    GROUP BY l.cluster, l.jid, l.began_at, l.ended_at
)
SELECT
    u.cluster,
    u.jid,
    CASE WHEN u.total > 0 THEN CAST(u.life - u.total AS double precision) / u.life ELSE 1.0 END AS covered_share,
    u.longest / CAST(1000000 AS double precision) AS longest_unobserved_seconds
FROM unobserved u
