{% from 'macros.sql' import all_gaps, greatest, least, length, now %}
{# A job's life is from its registration to its end, or now. Time outside gaps of its cluster counts as observed; gaps
   that overlap or touch are one stretch. In whole microseconds, so that both databases give the same. #}
{% set ended = 'coalesce(j.ended_by, ' ~ now() ~ ')' %}
{% set shared = length(greatest('s.began_at', 'j.registered_at'), least('s.until_at', ended)) %}
WITH all_gaps AS (
    {{ all_gaps() }}
),
marked AS (
    SELECT cluster, began_at, until_at, CASE WHEN began_at <= max(until_at) OVER (
            PARTITION BY cluster ORDER BY began_at, until_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) THEN 0 ELSE 1 END AS is_first
    FROM all_gaps
),
numbered AS (
    SELECT marked.*, sum(is_first) OVER (PARTITION BY cluster ORDER BY began_at, until_at ROWS UNBOUNDED PRECEDING) AS stretch
    FROM marked
),
stretches AS (
    SELECT cluster, min(began_at) AS began_at, max(until_at) AS until_at FROM numbered GROUP BY cluster, stretch
),
unobserved AS (
    SELECT j.id, {{ length('j.registered_at', ended) }} AS life, sum({{ shared }}) AS total, max({{ shared }}) AS longest
    FROM jobs j
    JOIN stretches s ON s.cluster = j.cluster AND s.began_at < {{ ended }} AND s.until_at > j.registered_at
    WHERE j.registered_at < {{ ended }}
    GROUP BY j.id, j.registered_at, j.ended_by
)
SELECT
    j.cluster,
    j.jid,
    coalesce(CAST(u.life - u.total AS double precision) / u.life, 1.0) AS covered_share,
    coalesce(u.longest / CAST(1000000 AS double precision), 0.0) AS longest_unobserved_seconds
FROM jobs j
LEFT JOIN unobserved u ON u.id = j.id
