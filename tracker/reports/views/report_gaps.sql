{% from 'macros.sql' import all_gaps, seconds %}
{# A job is open from a transition to state open until the next one to another state. #}
WITH all_gaps AS (
    {{ all_gaps() }}
),
changes AS (
    SELECT
        job_id, to_state, observed_at AS began_at,
        lead(observed_at) OVER (PARTITION BY job_id ORDER BY seq) AS ended_at
    FROM transitions
    WHERE from_state IS NULL OR from_state <> to_state
),
spells AS (
    SELECT c.job_id, j.cluster, c.began_at, c.ended_at FROM changes c JOIN jobs j ON j.id = c.job_id WHERE c.to_state = 'open'
)
SELECT
    g.cluster,
    g.began_at,
    g.ended_at,
    g.is_open,
    g.cause,
    g.detail,
    {{ seconds('g.began_at', 'g.until_at') }} AS seconds,
    count(DISTINCT s.job_id) AS open_jobs
FROM all_gaps g
LEFT JOIN spells s ON s.cluster = g.cluster AND s.began_at < g.until_at AND (s.ended_at IS NULL OR s.ended_at > g.began_at)
GROUP BY g.id, g.cluster, g.began_at, g.ended_at, g.until_at, g.is_open, g.cause, g.detail
