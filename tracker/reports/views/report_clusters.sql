{% from 'macros.sql' import now, plus_seconds %}
{# The next deadline is the nearest future deadline of an unsettled job. Each figure is looked up by an
   index, and so are the names: the smallest, then the smallest above it. At a million open jobs nothing reads them all;
   only the open ones are counted, in the index alone, for which their state is given twice. Only open jobs are due. #}
WITH RECURSIVE names(cluster) AS (
    SELECT min(j.cluster) FROM jobs j
    UNION ALL
    SELECT (SELECT min(j.cluster) FROM jobs j WHERE j.cluster > last.cluster) FROM names last
    WHERE last.cluster IS NOT NULL
)
SELECT
    n.cluster,
    (
        SELECT count(*) FROM jobs j
        WHERE j.cluster = n.cluster AND j.state IN ('open', 'failed', 'lost') AND j.state = 'open'
    ) AS open,
    (
        SELECT count(*) FROM jobs j
        WHERE j.cluster = n.cluster AND j.due_at < {{ plus_seconds(now(), -60) }}
    ) AS polls_behind,
    c.answered_at,
    c.paused_until,
    c.pause_cause,
    (
        SELECT j.deadline_on FROM jobs j
        WHERE j.cluster = n.cluster AND j.state IN ('open', 'failed', 'lost') AND j.deadline_at > {{ now() }}
        ORDER BY j.deadline_at LIMIT 1
    ) AS next_deadline_on
FROM (SELECT cluster FROM clusters UNION SELECT cluster FROM names WHERE cluster IS NOT NULL) n
LEFT JOIN clusters c ON c.cluster = n.cluster
