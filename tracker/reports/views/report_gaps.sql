{% from 'macros.sql' import all_gaps, now, seconds %}
{# A job is open from a transition to state open until the next one to another state. To compare each gap with each job
   would take gaps times jobs. Instead each job looks up (in an index, or by bisection) the first gap that ends after its
   registration, and the first that begins at or after its end; running sums over the gaps then say how many jobs had
   been registered before a gap's end, and how many of those had ended by its beginning: the difference was open
   meanwhile. Only the few jobs that changed state once more after their end are compared with each gap. #}
{% set never = "'9999-12-31 00:00:00.000000'" if sqlite else "CAST('infinity' AS timestamptz)" %}
WITH once AS {{ "" if sqlite else "NOT MATERIALIZED " }}(
    SELECT
        j.cluster,
        j.registered_at,
        {# The end that is attested is somebody's word; when it was no longer open is known. #}
        CASE j.state WHEN 'attested' THEN a.observed_at ELSE j.ended_by END AS ended_at
    FROM jobs j
    LEFT JOIN transitions a ON a.job_id = j.id AND a.action = 'attested'
    WHERE j.registered_at < {{ now() }} AND NOT EXISTS (
        SELECT 1 FROM transitions r WHERE r.job_id = j.id AND r.from_state <> 'open' AND r.from_state <> r.to_state
    )
),
more_than_once AS (
    SELECT s.job_id, s.cluster, s.began_at, s.ended_at
    FROM (
        SELECT
            t.job_id, j.cluster, t.to_state, t.observed_at AS began_at,
            lead(t.observed_at) OVER (PARTITION BY t.job_id ORDER BY t.seq) AS ended_at
        FROM (SELECT DISTINCT job_id FROM transitions WHERE from_state <> 'open' AND from_state <> to_state) r
        CROSS JOIN transitions t
        JOIN jobs j ON j.id = r.job_id
        WHERE t.job_id = r.job_id AND (t.from_state IS NULL OR t.from_state <> t.to_state)
    ) s
    WHERE s.to_state = 'open'
),
all_gaps AS (
    {{ all_gaps() }}
),
{% if not sqlite %}
edges AS NOT MATERIALIZED (
    SELECT
        cluster, array_agg(began_at ORDER BY began_at) AS begins,
        array_agg(ended_at ORDER BY ended_at) FILTER (WHERE ended_at IS NOT NULL) AS ends
    FROM all_gaps
    GROUP BY cluster
),
{% endif %}
changes AS (
    SELECT o.cluster, coalesce(o.at, {{ never }}) AS at, count(*) AS opened, 0 AS ended
    FROM (
{% if sqlite %}
        SELECT
            j.cluster,
            (SELECT min(g.ended_at) FROM gaps g WHERE g.cluster = j.cluster AND g.ended_at > j.registered_at) AS at
        FROM once j
{% else %}
        SELECT j.cluster, e.ends[width_bucket(j.registered_at, e.ends) + 1] AS at
        FROM once j
        JOIN edges e ON e.cluster = j.cluster
{% endif %}
    ) o
    GROUP BY o.at, o.cluster
    UNION ALL
    SELECT o.cluster, o.at, 0, count(*)
    FROM (
{% if sqlite %}
        SELECT j.cluster, coalesce(min(j.at, c.gap_began_at), j.at, c.gap_began_at) AS at
        FROM (
            SELECT
                o.*, (SELECT min(g.began_at) FROM gaps g WHERE g.cluster = o.cluster AND g.began_at >= o.ended_at) AS at
            FROM once o
            WHERE o.ended_at IS NOT NULL
        ) j
        LEFT JOIN clusters c ON c.cluster = j.cluster AND c.gap_began_at >= j.ended_at
{% else %}
        SELECT j.cluster, e.begins[width_bucket(j.ended_at - interval '1 microsecond', e.begins) + 1] AS at
        FROM once j
        JOIN edges e ON e.cluster = j.cluster
        WHERE j.ended_at IS NOT NULL
{% endif %}
    ) o
    GROUP BY o.at, o.cluster
    UNION ALL
    SELECT cluster, began_at, 0, 0 FROM all_gaps
    UNION ALL
    SELECT cluster, coalesce(ended_at, {{ never }}), 0, 0 FROM all_gaps
),
sums AS (
    SELECT
        c.cluster,
        c.at,
        sum(c.opened) OVER (PARTITION BY c.cluster ORDER BY c.at ROWS UNBOUNDED PRECEDING) AS opened,
        sum(c.ended) OVER (PARTITION BY c.cluster ORDER BY c.at ROWS UNBOUNDED PRECEDING) AS ended
    FROM (
        SELECT cluster, {{ "CAST(at AS text)" if sqlite else "at" }} AS at, sum(opened) AS opened, sum(ended) AS ended
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
        before_end.opened - by_beginning.ended + (
            SELECT count(DISTINCT s.job_id) FROM more_than_once s
            WHERE s.cluster = g.cluster AND s.began_at < coalesce(g.ended_at, {{ now() }})
                AND (s.ended_at IS NULL OR s.ended_at > g.began_at)
        ) AS bigint
    ) AS open_jobs
FROM all_gaps g
JOIN sums before_end ON before_end.cluster = g.cluster AND before_end.at = coalesce(g.ended_at, {{ never }})
JOIN sums by_beginning ON by_beginning.cluster = g.cluster AND by_beginning.at = g.began_at
