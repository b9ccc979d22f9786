{% from 'macros.sql' import begin, day_of, days, now, today, verdict %}
{# Before a daemon has been in contact with the cluster, days are counted in UTC. #}
WITH today AS (
    {{ today() }}
)
SELECT
    j.cluster,
    j.jid,
    j.kind,
    j.reference,
    j.state,
    j.received_at,
    r.received_at AS received_at_first,
    coalesce(a.amendments, 0) AS amendments,
    CASE
        WHEN j.received_at IS NOT NULL THEN 'received'
        WHEN j.submitted_at IS NOT NULL THEN 'submitted'
        ELSE 'registered'
    END AS basis,
    j.deadline_on,
    j.deadline_at,
    j.extended_on,
    CASE WHEN j.state = 'done' THEN {{ begin('j.ended_after', 'j.submitted_at', 'j.ended_by') }} END AS done_after,
    CASE WHEN j.state = 'done' THEN j.ended_by END AS done_by,
    {{ verdict('j') }} AS verdict,
    CASE WHEN j.state IN ('open', 'failed', 'lost') THEN {{ days('coalesce(d.day, ' ~ day_of(now()) ~ ')', 'j.deadline_on') }} END AS days_left
FROM jobs j
LEFT JOIN transitions r ON r.job_id = j.id AND r.seq = 0
LEFT JOIN (
    SELECT t.job_id, count(*) AS amendments FROM transitions t WHERE t.action = 'amended' GROUP BY t.job_id
) a ON a.job_id = j.id
LEFT JOIN today d ON d.cluster = j.cluster
