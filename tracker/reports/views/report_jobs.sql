{% from 'macros.sql' import begin, now, passed, verdict %}
SELECT
    j.cluster,
    j.jid,
    j.kind,
    j.reference,
    j.state,
    j.status,
    CASE WHEN j.status IS NOT NULL THEN {{ begin('j.status_after', 'j.submitted_at', 'j.status_by') }} END AS status_after,
    j.status_by,
    j.seen_at,
    j.submitted_at,
    j.registered_at,
    j.registered_by,
    j.received_at,
    j.deadline_on,
    {{ verdict('j') }} AS verdict,
    CASE
        WHEN j.state IN ('done', 'failed', 'lost') THEN {{ begin('j.ended_after', 'j.submitted_at', 'j.ended_by') }}
        ELSE j.ended_after
    END AS ended_after,
    j.ended_by,
    j.due_at AS next_poll_at,
    {{ passed('coalesce(j.submitted_at, j.registered_at)', 'coalesce(j.ended_by, ' ~ now() ~ ')') }} AS age_seconds,
    j.polls,
    j.failures,
    j.last_error
FROM jobs j
