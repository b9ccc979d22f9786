{% from 'macros.sql' import now, plus_seconds %}
{# The next deadline is the nearest that is still ahead of a job that somebody waits for. #}
SELECT
    n.cluster,
    coalesce(j.open, 0) AS open,
    coalesce(j.polls_behind, 0) AS polls_behind,
    c.answered_at,
    c.paused_until,
    c.pause_cause,
    j.next_deadline_on
FROM (SELECT cluster FROM clusters UNION SELECT cluster FROM jobs) n
LEFT JOIN clusters c ON c.cluster = n.cluster
LEFT JOIN (
    SELECT
        cluster,
        count(*) FILTER (WHERE state = 'open') AS open,
        count(*) FILTER (WHERE state = 'open' AND due_at < {{ plus_seconds(now(), -60) }}) AS polls_behind,
        min(deadline_on) FILTER (
            WHERE state IN ('open', 'failed', 'lost') AND deadline_at > {{ now() }}
        ) AS next_deadline_on
    FROM jobs
    GROUP BY cluster
) j ON j.cluster = n.cluster
