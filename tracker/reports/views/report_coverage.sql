{% from 'macros.sql' import all_gaps, greatest, least, now, seconds %}
{# A job's life is from its registration to its end, or now. What no gap of its cluster covers was observed; gaps that
   overlap or touch are one stretch. Those of a cluster hardly ever do: then the gaps in a job's life are the last that
   began before it and those that began during it, which an index finds, and the open one. In a cluster whose gaps are
   tangled they are made one first, and each job is compared with each stretch. #}
{% set piece = 'CASE WHEN g.began_at IS NOT NULL THEN '
    ~ seconds(greatest('g.began_at', 'j.registered_at'), least('g.ended_at', 'j.until_at')) ~ ' END' %}
{% set whole_piece = 'CASE WHEN g.began_at >= j.registered_at AND g.ended_at <= j.until_at THEN l.seconds ELSE '
    ~ piece ~ ' END' %}
{% set open_piece = 'CASE WHEN c.gap_began_at IS NOT NULL THEN '
    ~ seconds(greatest('c.gap_began_at', 'j.registered_at'), 'j.until_at') ~ ' END' %}
WITH lives AS {% if not sqlite %}NOT MATERIALIZED {% endif %}(
    SELECT
        id, cluster, jid, registered_at,
        {{ greatest('registered_at', 'coalesce(ended_by, ' ~ now() ~ ')') }} AS until_at
    FROM jobs
),
stretches AS (
    SELECT b.cluster, min(b.began_at) AS began_at, max(b.ended_at) AS ended_at, count(*) AS gaps
    FROM (
        SELECT
            a.*,
            sum(a.is_new) OVER (PARTITION BY a.cluster ORDER BY a.began_at, a.ended_at ROWS UNBOUNDED PRECEDING) AS number
        FROM (
            SELECT
                o.cluster, o.began_at, o.ended_at,
                CASE WHEN o.began_at <= max(o.ended_at) OVER (
                    PARTITION BY o.cluster ORDER BY o.began_at, o.ended_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                ) THEN 0 ELSE 1 END AS is_new
            FROM (
                SELECT cluster, began_at, coalesce(ended_at, {{ now() }}) AS ended_at
                FROM (
                    {{ all_gaps() }}
                ) g
            ) o
        ) a
    ) b
    GROUP BY b.cluster, b.number
),
{% if sqlite %}
lengths AS MATERIALIZED (
    SELECT id, {{ seconds('began_at', 'ended_at') }} AS seconds FROM gaps
),
{% else %}
edges AS NOT MATERIALIZED (
    SELECT cluster, array_agg(began_at ORDER BY began_at) AS begins, array_agg(ended_at ORDER BY began_at) AS ends
    FROM gaps
    GROUP BY cluster
),
{% endif %}
tangled AS (
    SELECT DISTINCT cluster FROM stretches WHERE gaps > 1
)
SELECT
    u.cluster,
    u.jid,
    CASE WHEN u.total > 0 THEN 1.0 - u.total / {{ seconds('u.registered_at', 'u.until_at') }} ELSE 1.0 END AS covered_share,
    u.longest AS longest_unobserved_seconds
FROM (
{% if sqlite %}
    SELECT
        j.cluster, j.jid, j.registered_at, j.until_at,
        coalesce(sum({{ whole_piece }}), 0.0) + coalesce(max({{ open_piece }}), 0.0) AS total,
        {{ greatest('coalesce(max(' ~ whole_piece ~ '), 0.0)', 'coalesce(max(' ~ open_piece ~ '), 0.0)') }} AS longest
    FROM lives j
    LEFT JOIN gaps g ON g.cluster = j.cluster AND g.began_at < j.until_at AND g.ended_at > j.registered_at
        AND g.began_at >= coalesce(
            (SELECT max(p.began_at) FROM gaps p WHERE p.cluster = j.cluster AND p.began_at <= j.registered_at),
            j.registered_at
        )
    LEFT JOIN lengths l ON l.id = g.id
    LEFT JOIN clusters c ON c.cluster = j.cluster AND c.gap_began_at < j.until_at
    WHERE j.cluster NOT IN (SELECT cluster FROM tangled)
    GROUP BY j.id, j.cluster, j.jid, j.registered_at, j.until_at
{% else %}
    SELECT
        j.cluster, j.jid, j.registered_at, j.until_at,
        coalesce(p.total, 0.0) + coalesce({{ open_piece }}, 0.0) AS total,
        {{ greatest('coalesce(p.longest, 0.0)', 'coalesce(' ~ open_piece ~ ', 0.0)') }} AS longest
    FROM lives j
    LEFT JOIN edges e ON e.cluster = j.cluster
    LEFT JOIN clusters c ON c.cluster = j.cluster AND c.gap_began_at < j.until_at
    CROSS JOIN LATERAL (
        SELECT sum(s.seconds) AS total, max(s.seconds) AS longest
        FROM (
            SELECT {{ seconds(greatest('e.begins[i]', 'j.registered_at'), least('e.ends[i]', 'j.until_at')) }} AS seconds
            FROM generate_series(
                greatest(1, width_bucket(j.registered_at, e.begins)),
                width_bucket(j.until_at - interval '1 microsecond', e.begins)
            ) AS n(i)
        ) s
        WHERE s.seconds > 0
    ) p
    WHERE j.cluster NOT IN (SELECT cluster FROM tangled)
{% endif %}
    UNION ALL
    SELECT
        j.cluster, j.jid, j.registered_at, j.until_at,
        coalesce(sum({{ piece }}), 0.0) AS total,
        coalesce(max({{ piece }}), 0.0) AS longest
    FROM lives j
    LEFT JOIN stretches g ON g.cluster = j.cluster AND g.began_at < j.until_at AND g.ended_at > j.registered_at
    WHERE j.cluster IN (SELECT cluster FROM tangled)
    GROUP BY j.id, j.cluster, j.jid, j.registered_at, j.until_at
) u
