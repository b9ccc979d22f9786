{% from 'macros.sql' import all_gaps, now, seconds %}
{# A job was open from a transition to state open until the next one to another state. #}
SELECT
    g.cluster,
    g.began_at,
    g.ended_at,
    g.is_open,
    g.cause,
    g.detail,
    {{ seconds('g.began_at', 'coalesce(g.ended_at, ' ~ now() ~ ')') }} AS seconds,
    (
        SELECT count(DISTINCT s.job_id)
        FROM (
            SELECT
                t.job_id, j.cluster, t.to_state, t.observed_at AS began_at,
                lead(t.observed_at) OVER (PARTITION BY t.job_id ORDER BY t.seq) AS ended_at
            FROM transitions t
            JOIN jobs j ON j.id = t.job_id
            WHERE t.from_state IS NULL OR t.from_state <> t.to_state
        ) s
        WHERE s.cluster = g.cluster AND s.to_state = 'open'
            AND s.began_at < coalesce(g.ended_at, {{ now() }}) AND (s.ended_at IS NULL OR s.ended_at > g.began_at)
    ) AS open_jobs
FROM (
    {{ all_gaps() }}
) g
