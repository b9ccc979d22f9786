{% from 'macros.sql' import begin, greatest, passed, plus_seconds, seconds %}
SELECT
    d.cluster,
    d.jid,
    d.kind,
    d.reference,
    d.submitted_at,
    d.registered_at,
    d.done_after,
    d.done_by,
    coalesce({{ greatest('0.0', seconds('coalesce(d.submitted_at, d.registered_at)', 'd.done_after')) }}, 0.0) AS seconds_min,
    {{ passed('d.submitted_at', 'd.done_by') }} AS seconds_max,
    {{ seconds('d.done_after', 'd.done_by') }} AS uncertainty_seconds,
    CASE WHEN d.kind = 'export' THEN {{ plus_seconds('d.done_after', 7 * 86400) }} END AS download_by,
    d.polls
FROM (
    SELECT
        j.cluster, j.jid, j.kind, j.reference, j.submitted_at, j.registered_at,
        {{ begin('j.ended_after', 'j.submitted_at', 'j.ended_by') }} AS done_after, j.ended_by AS done_by, j.polls
    FROM jobs j
    WHERE j.state = 'done'
) d
