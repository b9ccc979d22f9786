{% from 'macros.sql' import begin, verdict %}
{# A request is done when all its jobs are done, except withdrawn ones. Its verdict is the worst of its jobs. #}
SELECT
    r.reference,
    count(*) AS jobs,
    count(*) FILTER (WHERE r.state = 'open') AS open,
    count(*) FILTER (WHERE r.state = 'done') AS done,
    count(*) FILTER (WHERE r.state NOT IN ('open', 'done')) AS not_done,
    min(r.received_at) AS received_at,
    min(r.deadline_on) AS deadline_on,
    CASE WHEN count(*) FILTER (WHERE r.state NOT IN ('done', 'withdrawn')) = 0 THEN max(r.done_after) END AS done_after,
    CASE WHEN count(*) FILTER (WHERE r.state NOT IN ('done', 'withdrawn')) = 0 THEN max(r.done_by) END AS done_by,
    CASE
{% for verdict in ('missed', 'overdue', 'undecidable', 'pending', 'attested', 'met') %}
        WHEN count(*) FILTER (WHERE r.verdict = '{{ verdict }}') > 0 THEN '{{ verdict }}'
{% endfor %}
        ELSE 'withdrawn'
    END AS verdict
FROM (
    SELECT
        j.reference, j.state, j.received_at, j.deadline_on,
        CASE WHEN j.state = 'done' THEN {{ begin('j.ended_after', 'j.submitted_at', 'j.ended_by') }} END AS done_after,
        CASE WHEN j.state = 'done' THEN j.ended_by END AS done_by,
        {{ verdict('j') }} AS verdict
    FROM jobs j
    WHERE j.reference IS NOT NULL
) r
GROUP BY r.reference
