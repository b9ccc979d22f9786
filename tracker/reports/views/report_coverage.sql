{% from 'macros.sql' import greatest, least, now, seconds %}
{# A job's life is from its registration to its end, or now. What no gap of its cluster covers was observed; gaps that
   overlap or touch are one stretch. To compare each job with each stretch would take jobs times gaps. Instead a job
   looks up the last gap that began before it did, and goes on from the stretch of that one to its own end: in an index
   of the gaps, of which the first of a stretch stands for all of it, or by bisection in an array. #}
{% set clipped = seconds(greatest('s.began_at', 'j.registered_at'), least('s.ended_at', 'j.until_at')) %}
WITH lives AS {% if not sqlite %}NOT MATERIALIZED {% endif %}(
    SELECT
        id, cluster, jid, registered_at,
        {{ greatest('registered_at', 'coalesce(ended_by, ' ~ now() ~ ')') }} AS until_at
    FROM jobs
),
numbered AS (
    SELECT
        a.*,
        sum(a.is_first) OVER (PARTITION BY a.cluster ORDER BY a.began_at, a.ended_at ROWS UNBOUNDED PRECEDING) AS stretch
    FROM (
        SELECT
            g.*,
            CASE WHEN g.began_at <= max(g.ended_at) OVER (
                PARTITION BY g.cluster ORDER BY g.began_at, g.ended_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) THEN 0 ELSE 1 END AS is_first
        FROM (
            SELECT id, cluster, began_at, ended_at FROM gaps
            UNION ALL
            SELECT NULL, cluster, gap_began_at, {{ now() }} FROM clusters WHERE gap_began_at IS NOT NULL
        ) g
    ) a
),
stretches AS (
    SELECT cluster, stretch, min(began_at) AS began_at, max(ended_at) AS ended_at FROM numbered GROUP BY cluster, stretch
),
{% if sqlite %}
stretch_of AS MATERIALIZED (
    SELECT n.id, n.is_first, s.began_at, s.ended_at, {{ seconds('s.began_at', 's.ended_at') }} AS seconds
    FROM numbered n
    JOIN stretches s ON s.cluster = n.cluster AND s.stretch = n.stretch
),
{# That of the gap still open has no place in the index, if it is the first of its stretch. #}
still_open AS MATERIALIZED (
    SELECT cluster, began_at FROM numbered WHERE id IS NULL AND is_first = 1
),
{% set piece %}
CASE
            WHEN s.id IS NULL THEN NULL
            WHEN s.began_at >= j.registered_at AND s.ended_at <= j.until_at THEN s.seconds
            ELSE {{ clipped }}
        END
{%- endset %}
{% set open_piece %}
CASE WHEN o.began_at IS NOT NULL THEN {{ seconds(greatest('o.began_at', 'j.registered_at'), 'j.until_at') }} END
{%- endset %}
unobserved AS (
    SELECT
        j.cluster, j.jid, j.registered_at, j.until_at,
        coalesce(sum({{ piece }}), 0.0) + coalesce(max({{ open_piece }}), 0.0) AS total,
        max(coalesce(max({{ piece }}), 0.0), coalesce(max({{ open_piece }}), 0.0)) AS longest
    FROM lives j
    LEFT JOIN gaps g ON g.cluster = j.cluster AND g.began_at < j.until_at AND g.began_at >= coalesce(
        (
            SELECT f.began_at FROM stretch_of f WHERE f.id = (
                SELECT p.id FROM gaps p WHERE p.cluster = j.cluster AND p.began_at <= j.registered_at
                ORDER BY p.began_at DESC LIMIT 1
            )
        ),
        j.registered_at
    )
    LEFT JOIN stretch_of s ON s.id = g.id AND s.is_first = 1 AND s.ended_at > j.registered_at
    LEFT JOIN still_open o ON o.cluster = j.cluster AND o.began_at < j.until_at
    GROUP BY j.id, j.cluster, j.jid, j.registered_at, j.until_at
)
{% else %}
edges AS NOT MATERIALIZED (
    SELECT cluster, array_agg(began_at ORDER BY began_at) AS begins, array_agg(ended_at ORDER BY began_at) AS ends
    FROM stretches
    GROUP BY cluster
),
unobserved AS NOT MATERIALIZED (
    SELECT
        j.cluster, j.jid, j.registered_at, j.until_at,
        coalesce(p.total, 0.0) AS total, coalesce(p.longest, 0.0) AS longest
    FROM lives j
    LEFT JOIN edges e ON e.cluster = j.cluster
    CROSS JOIN LATERAL (
        SELECT sum(c.seconds) AS total, max(c.seconds) AS longest
        FROM (
            SELECT {{ clipped }} AS seconds
            FROM (
                SELECT e.begins[i] AS began_at, e.ends[i] AS ended_at
                FROM generate_series(
                    greatest(1, width_bucket(j.registered_at, e.begins)),
                    width_bucket(j.until_at - interval '1 microsecond', e.begins)
                ) AS n(i)
            ) s
        ) c
        WHERE c.seconds > 0
    ) p
)
{% endif %}
SELECT
    u.cluster,
    u.jid,
    CASE WHEN u.total > 0 THEN 1.0 - u.total / {{ seconds('u.registered_at', 'u.until_at') }} ELSE 1.0 END AS covered_share,
    u.longest AS longest_unobserved_seconds
FROM unobserved u
