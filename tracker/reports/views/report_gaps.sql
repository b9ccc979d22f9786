{% from 'macros.sql' import all_gaps, now, seconds %}
{# A job is open from a transition to state open until the next one to another state. #}
WITH all_gaps AS (
    {{ all_gaps() }}
),
spells AS (
    SELECT c.job_id, j.cluster, c.began_at, c.ended_at
    FROM (
        SELECT
            t.job_id, t.to_state, t.observed_at AS began_at,
            lead(t.observed_at) OVER (PARTITION BY t.job_id ORDER BY t.seq) AS ended_at
        FROM transitions t
        WHERE t.from_state IS NULL OR t.from_state <> t.to_state
    ) c
    JOIN jobs j ON j.id = c.job_id
    WHERE c.to_state = 'open'
)
SELECT
    g.cluster,
    g.began_at,
    g.ended_at,
    g.is_open,
    g.cause,
    g.detail,
    {{ seconds('g.began_at', 'coalesce(g.ended_at, ' ~ now() ~ ')') }} AS seconds,
    count(DISTINCT s.job_id) AS open_jobs
FROM all_gaps g
LEFT JOIN spells s ON s.cluster = g.cluster AND s.began_at < coalesce(g.ended_at, {{ now() }})
    AND (s.ended_at IS NULL OR s.ended_at > g.began_at)
GROUP BY g.id, g.cluster, g.began_at, g.ended_at, g.is_open, g.cause, g.detail
