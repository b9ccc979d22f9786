{% from 'macros.sql' import greatest, microseconds, now %}
{# A job's life is from its registration to its end, or now. What no gap of its cluster covers was observed; gaps that
   overlap or touch are one stretch. To compare each job with each stretch would take jobs times gaps. Instead a job
   looks up the last gap that began before it did, and goes on from that one to its own end: on SQLite in an index of the
   gaps, of which the first of a stretch stands for all of it; on PostgreSQL, where each step would cost more, by
   bisection in arrays, which hold the sums of the stretches before each, and the longest of each 1, 2, 4, 8 … in a row.
   All in whole microseconds, so that both databases come to the same. #}
{% set until_at = greatest('j.registered_at', 'coalesce(j.ended_by, ' ~ now() ~ ')') %}
WITH {{ "" if sqlite else "RECURSIVE " }}numbered AS (
    SELECT
        a.*,
        sum(a.is_first) OVER (PARTITION BY a.cluster ORDER BY a.began_at, a.ended_at ROWS UNBOUNDED PRECEDING) AS stretch
    FROM (
        SELECT
            g.*,
            CASE WHEN g.began_at <= max(g.ended_at) OVER (
                PARTITION BY g.cluster ORDER BY g.began_at, g.ended_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) THEN 0 ELSE 1 END AS is_first,
            CASE WHEN g.began_at = lag(g.began_at) OVER (PARTITION BY g.cluster ORDER BY g.began_at, g.ended_at)
                THEN 0 ELSE 1 END AS is_first_then
        FROM (
            SELECT id, cluster, began_at, ended_at FROM gaps
            UNION ALL
            SELECT NULL, cluster, gap_began_at, {{ now() }} FROM clusters WHERE gap_began_at IS NOT NULL
        ) g
    ) a
),
stretches AS (
    SELECT
        cluster, CAST(stretch AS integer) AS stretch, min(began_at) AS began_at, max(ended_at) AS ended_at,
        max(CASE is_first WHEN 1 THEN id END) AS first_id
    FROM numbered
    GROUP BY cluster, stretch
),
{% if sqlite %}
{# By the first gap at each instant: all of its stretch. That of the gap still open has no place in the index, and is
   told apart where it is the first of its stretch. #}
stretch_of AS MATERIALIZED (
    SELECT
        n.id, n.is_first, {{ microseconds('s.began_at') }} AS began, {{ microseconds('s.ended_at') }} AS ended,
        {{ microseconds('s.ended_at') }} - {{ microseconds('s.began_at') }} AS length
    FROM numbered n
    JOIN stretches s ON s.cluster = n.cluster AND s.stretch = n.stretch
    WHERE n.is_first_then = 1 AND n.id IS NOT NULL AND s.first_id IS NOT NULL
),
still_open AS MATERIALIZED (
    SELECT cluster, {{ microseconds('began_at') }} AS began FROM stretches WHERE first_id IS NULL
),
{# In the order of the ids, so that they need no sorting to be grouped by; with a limit, or each of its columns would be
   computed anew for every gap. #}
lives AS (
    SELECT
        j.id, j.cluster, j.jid, j.registered_at, {{ until_at }} AS until_at,
        {{ microseconds('j.registered_at') }} AS began, {{ microseconds(until_at) }} AS ended
    FROM jobs j
    ORDER BY j.id
    LIMIT -1
),
{% set piece %}
CASE WHEN s.began >= j.began AND s.ended <= j.ended THEN s.length ELSE min(s.ended, j.ended) - max(s.began, j.began) END
{%- endset %}
closed AS (
    SELECT
        j.cluster, j.jid, j.began, j.ended,
        coalesce(sum({{ piece }}), 0) AS total, coalesce(max({{ piece }}), 0) AS longest
    FROM lives j
    LEFT JOIN gaps g ON g.cluster = j.cluster AND g.began_at < j.until_at AND g.began_at >= coalesce(
        (SELECT max(p.began_at) FROM gaps p WHERE p.cluster = j.cluster AND p.began_at <= j.registered_at),
        j.registered_at
    )
    LEFT JOIN stretch_of s ON s.id = g.id AND s.ended > j.began AND (s.is_first = 1 OR g.began_at <= j.registered_at)
    GROUP BY j.id
),
{% set open_piece = "CASE WHEN o.began < c.ended THEN c.ended - max(o.began, c.began) ELSE 0 END" %}
unobserved AS (
    SELECT
        c.cluster, c.jid, c.ended - c.began AS life,
        c.total + {{ open_piece }} AS total, max(c.longest, {{ open_piece }}) AS longest
    FROM closed c
    LEFT JOIN still_open o ON o.cluster = c.cluster
)
{% else %}
{% macro length(interval) -%}
CAST(round(date_part('epoch', {{ interval }}) * 1000000) AS bigint)
{%- endmacro %}
lengths AS (
    SELECT
        cluster, stretch, began_at, ended_at, {{ length('ended_at - began_at') }} AS length
    FROM stretches
),
longest_of AS (
    SELECT cluster, stretch, 0 AS level, length AS longest FROM lengths
    UNION ALL
    SELECT
        cluster, stretch, level + 1,
        greatest(longest, lead(longest, 1 << level) OVER (PARTITION BY cluster ORDER BY stretch))
    FROM longest_of
    WHERE 1 << level < (SELECT max(stretch) FROM stretches)
),
edges AS (
    SELECT s.cluster, s.begins, s.ends, s.before, l.longest
    FROM (
        SELECT
            b.cluster, array_agg(b.began_at ORDER BY b.stretch) AS begins, array_agg(b.ended_at ORDER BY b.stretch) AS ends,
            array_agg(b.before ORDER BY b.stretch) AS before
        FROM (
            SELECT
                e.*, CAST(sum(e.length) OVER (PARTITION BY e.cluster ORDER BY e.stretch) AS bigint) - e.length AS before
            FROM lengths e
        ) b
        GROUP BY b.cluster
    ) s
    JOIN (
        SELECT cluster, array_agg(longest ORDER BY level, stretch) AS longest FROM longest_of GROUP BY cluster
    ) l ON l.cluster = s.cluster
),
{# first: the last stretch that began by the registration; last: the last that began before the end; 0: none. What lies
   between them are 2^level stretches from one side and as many from the other. With an offset, or PostgreSQL would write
   each expression out wherever it is used, and compute it as often. #}
lives AS (
    SELECT
        j.cluster, j.jid, j.registered_at, {{ until_at }} AS until_at, e.begins, e.ends, e.before, e.longest,
        coalesce(width_bucket(j.registered_at, e.begins), 0) AS first,
        coalesce(width_bucket({{ until_at }} - interval '1 microsecond', e.begins), 0) AS last
    FROM jobs j
    LEFT JOIN edges e ON e.cluster = j.cluster
    OFFSET 0
),
pieces AS (
    SELECT
        l.*,
        CASE WHEN l.first > 0 AND l.ends[l.first] > l.registered_at
            THEN {{ length('least(l.ends[l.first], l.until_at) - l.registered_at') }} ELSE 0 END AS at_first,
        CASE WHEN l.last > l.first
            THEN {{ length('least(l.ends[l.last], l.until_at) - l.begins[l.last]') }} ELSE 0 END AS at_last,
        width_bucket(l.last - l.first - 1, ARRAY[{% for level in range(31) %}{{ 2 ** level }}{{ ", " if not loop.last }}{% endfor %}]) - 1 AS level
    FROM lives l
    OFFSET 0
),
unobserved AS (
    SELECT
        p.cluster, p.jid, {{ length('p.until_at - p.registered_at') }} AS life,
        p.at_first + p.at_last + CASE WHEN p.level >= 0 THEN p.before[p.last] - p.before[p.first + 1] ELSE 0 END AS total,
        greatest(p.at_first, p.at_last, CASE WHEN p.level >= 0 THEN greatest(
            p.longest[p.level * array_length(p.begins, 1) + p.first + 1],
            p.longest[p.level * array_length(p.begins, 1) + p.last - (1 << p.level)]
        ) END) AS longest
    FROM pieces p
)
{% endif %}
SELECT
    u.cluster,
    u.jid,
    CASE WHEN u.total > 0 THEN CAST(u.life - u.total AS double precision) / u.life ELSE 1.0 END AS covered_share,
    u.longest / CAST(1000000 AS double precision) AS longest_unobserved_seconds
FROM unobserved u
