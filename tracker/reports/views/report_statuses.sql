{% from 'macros.sql' import begin, greatest, now, seconds %}
{# A status is left when the next one is entered. #}
WITH entries AS (
    SELECT
        job_id, to_status AS status, last_seen_at, observed_at,
        lead(last_seen_at) OVER (PARTITION BY job_id ORDER BY seq) AS left_after,
        lead(observed_at) OVER (PARTITION BY job_id ORDER BY seq) AS left_by
    FROM transitions
    WHERE to_status IS NOT NULL AND (from_status IS NULL OR from_status <> to_status)
)
SELECT
    j.cluster,
    j.jid,
    j.kind,
    j.reference,
    e.status,
    {{ begin('e.last_seen_at', 'j.submitted_at', 'e.observed_at') }} AS entered_after,
    e.observed_at AS entered_by,
    e.left_after,
    e.left_by,
    coalesce({{ greatest('0.0', seconds('e.observed_at', 'CASE WHEN e.left_by IS NULL THEN j.seen_at ELSE e.left_after END')) }}, 0.0) AS seconds_min,
    {{ seconds(begin('e.last_seen_at', 'j.submitted_at', 'e.observed_at'), "CASE WHEN e.left_by IS NULL AND j.state = 'open' THEN " ~ now() ~ ' ELSE e.left_by END') }} AS seconds_max
FROM entries e
JOIN jobs j ON j.id = e.job_id
