{% from 'macros.sql' import all_gaps, greatest, least, microseconds, now %}
{# A job's life is from its registration to its end, or now. Time outside gaps of its cluster counts as observed; gaps
   that overlap or touch are one stretch. In whole microseconds, so that both databases give the same. #}
{% set ended = 'coalesce(j.ended_by, ' ~ now() ~ ')' %}
{% set shared = least('s.until', 'l.until') ~ ' - ' ~ greatest('s.began', 'l.began') %}
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
    SELECT cluster, {{ microseconds('min(began_at)') }} AS began, {{ microseconds('max(until_at)') }} AS until
    FROM numbered GROUP BY cluster, stretch
),
{# Materialized: otherwise SQLite converts each time once more for each gap. #}
lives AS MATERIALIZED (
    SELECT j.id, j.cluster, {{ microseconds('j.registered_at') }} AS began, {{ microseconds(ended) }} AS until
    FROM jobs j
),
unobserved AS (
    SELECT l.id, l.until - l.began AS life, sum({{ shared }}) AS total, max({{ shared }}) AS longest
    FROM lives l
    JOIN stretches s ON s.cluster = l.cluster AND s.began < l.until AND s.until > l.began
    WHERE l.began < l.until
    GROUP BY l.id, l.began, l.until
)
SELECT
    j.cluster,
    j.jid,
    coalesce(CAST(u.life - u.total AS double precision) / u.life, 1.0) AS covered_share,
    coalesce(u.longest / CAST(1000000 AS double precision), 0.0) AS longest_unobserved_seconds
FROM jobs j
LEFT JOIN unobserved u ON u.id = j.id
