{% from 'macros.sql' import all_gaps, now, seconds %}
{# A job is open from a transition to state open until the next one to another state. To compare each gap with each job
   would take gaps times jobs. Instead each job looks up (in an index, or by bisection) the first gap that ends after its registration, and
   the first that begins at or after its end; running sums over the gaps then say how many jobs had been registered
   before a gap's end, and how many of those had ended by its beginning: the difference was open meanwhile. Only the few
   jobs that were open more than once are compared with each gap of their cluster. #}
WITH once AS {% if not sqlite %}NOT MATERIALIZED {% endif %}(
    SELECT
        j.cluster,
        j.state,
        j.registered_at,
        CASE
            WHEN j.state = 'open' THEN NULL
            WHEN j.state IN ('attested', 'withdrawn') THEN (
                SELECT min(t.observed_at) FROM transitions t
                WHERE t.job_id = j.id AND t.from_state = 'open' AND t.to_state <> 'open'
            )
            ELSE j.ended_by
        END AS ended_at
    FROM jobs j
    WHERE j.registered_at < {{ now() }}
        AND NOT EXISTS (SELECT 1 FROM transitions r WHERE r.job_id = j.id AND r.action = 'reopened')
),
more_than_once AS (
    SELECT s.job_id, s.cluster, s.began_at, s.ended_at
    FROM (
        SELECT
            t.job_id, j.cluster, t.to_state, t.observed_at AS began_at,
            lead(t.observed_at) OVER (PARTITION BY t.job_id ORDER BY t.seq) AS ended_at
        FROM (SELECT DISTINCT job_id FROM transitions WHERE action = 'reopened') r
        CROSS JOIN transitions t
        JOIN jobs j ON j.id = r.job_id
        WHERE t.job_id = r.job_id AND (t.from_state IS NULL OR t.from_state <> t.to_state)
    ) s
    WHERE s.to_state = 'open'
),
{% if not sqlite %}
edges AS NOT MATERIALIZED (
    SELECT cluster, array_agg(began_at ORDER BY began_at) AS begins, array_agg(ended_at ORDER BY ended_at) AS ends
    FROM gaps
    GROUP BY cluster
),
{% endif %}
changes AS (
    SELECT o.cluster, o.at, count(*) AS opened, 0 AS ended
    FROM (
        SELECT
            j.cluster,
{% if sqlite %}
            (SELECT min(g.ended_at) FROM gaps g WHERE g.cluster = j.cluster AND g.ended_at > j.registered_at) AS at
        FROM once j
{% else %}
            e.ends[width_bucket(j.registered_at, e.ends) + 1] AS at
        FROM once j
        JOIN edges e ON e.cluster = j.cluster
        OFFSET 0
{% endif %}
    ) o
    GROUP BY o.at, o.cluster
    UNION ALL
    SELECT o.cluster, o.at, 0, count(*)
    FROM (
        SELECT
            j.cluster,
{% if sqlite %}
            (SELECT min(g.began_at) FROM gaps g WHERE g.cluster = j.cluster AND g.began_at >= j.ended_at) AS at
        FROM once j
{% else %}
            e.begins[width_bucket(j.ended_at - interval '1 microsecond', e.begins) + 1] AS at
        FROM once j
        JOIN edges e ON e.cluster = j.cluster
{% endif %}
        WHERE j.state <> 'open'
        {% if not sqlite %}OFFSET 0{% endif %}

    ) o
    GROUP BY o.at, o.cluster
    UNION ALL
    SELECT cluster, began_at, 0, 0 FROM gaps
    UNION ALL
    SELECT cluster, ended_at, 0, 0 FROM gaps
),
sums AS (
    SELECT
        c.cluster,
        c.at,
        sum(c.opened) OVER (PARTITION BY c.cluster ORDER BY c.at ROWS UNBOUNDED PRECEDING) AS opened,
        sum(c.ended) OVER (PARTITION BY c.cluster ORDER BY c.at ROWS UNBOUNDED PRECEDING) AS ended
    FROM (
        SELECT cluster, at, sum(opened) AS opened, sum(ended) AS ended
        FROM changes
        WHERE at IS NOT NULL
        GROUP BY cluster, at
    ) c
)
SELECT
    g.cluster,
    g.began_at,
    g.ended_at,
    g.is_open,
    g.cause,
    g.detail,
    {{ seconds('g.began_at', 'coalesce(g.ended_at, ' ~ now() ~ ')') }} AS seconds,
    CAST(
        CASE
            WHEN g.is_open = 0 THEN before_end.opened - by_beginning.ended
            ELSE (
                SELECT count(*) FROM once j
                WHERE j.cluster = g.cluster AND (j.state = 'open' OR j.ended_at > g.began_at)
            )
        END + (
            SELECT count(DISTINCT s.job_id) FROM more_than_once s
            WHERE s.cluster = g.cluster AND s.began_at < coalesce(g.ended_at, {{ now() }})
                AND (s.ended_at IS NULL OR s.ended_at > g.began_at)
        ) AS bigint
    ) AS open_jobs
FROM (
    {{ all_gaps() }}
) g
LEFT JOIN sums before_end ON before_end.cluster = g.cluster AND before_end.at = g.ended_at
LEFT JOIN sums by_beginning ON by_beginning.cluster = g.cluster AND by_beginning.at = g.began_at
