{% from 'macros.sql' import begin, greatest, now, seconds %}
SELECT
    j.cluster,
    j.jid,
    j.kind,
    j.reference,
    s.status,
    {{ begin('s.last_seen_at', 'j.submitted_at', 's.observed_at') }} AS entered_after,
    s.observed_at AS entered_by,
    s.left_after,
    s.left_by,
    coalesce({{ greatest('0.0', seconds('s.observed_at', 'CASE WHEN s.left_by IS NULL THEN j.seen_at ELSE s.left_after END')) }}, 0.0) AS seconds_min,
    {{ seconds(begin('s.last_seen_at', 'j.submitted_at', 's.observed_at'), "CASE WHEN s.left_by IS NULL AND j.state = 'open' THEN " ~ now() ~ ' ELSE s.left_by END') }} AS seconds_max
FROM (
    SELECT
        t.job_id, t.to_status AS status, t.last_seen_at, t.observed_at,
        lead(t.last_seen_at) OVER next AS left_after,
        lead(t.observed_at) OVER next AS left_by
    FROM transitions t
    WHERE t.to_status IS NOT NULL AND (t.from_status IS NULL OR t.from_status <> t.to_status)
    WINDOW next AS (PARTITION BY t.job_id ORDER BY t.seq)
) s
CROSS JOIN jobs j WHERE j.id = s.job_id
