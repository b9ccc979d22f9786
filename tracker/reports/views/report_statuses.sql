{% from 'macros.sql' import begin, greatest, now, seconds %}
{# The status that a job has now is left by nothing yet. While the job is open it lasts until now at most; once it has
   ended nobody looks any more, and no greatest value is known. At least it lasted until it was last seen. #}
SELECT
    s.cluster,
    s.jid,
    s.kind,
    s.reference,
    s.status,
    s.entered_after,
    s.entered_by,
    s.left_after,
    s.left_by,
    coalesce({{ greatest('0.0', seconds('s.entered_by', 's.known_until')) }}, 0.0) AS seconds_min,
    {{ seconds('s.entered_after', 's.known_by') }} AS seconds_max
FROM (
    SELECT
        c.*,
        CASE WHEN c.left_by IS NULL THEN c.seen_at ELSE c.left_after END AS known_until,
        CASE WHEN c.left_by IS NULL AND c.state = 'open' THEN {{ now() }} ELSE c.left_by END AS known_by
    FROM (
        SELECT
            j.cluster, j.jid, j.kind, j.reference, j.state, j.seen_at, t.to_status AS status,
            {{ begin('t.last_seen_at', 'j.submitted_at', 't.observed_at') }} AS entered_after,
            t.observed_at AS entered_by,
            lead(t.last_seen_at) OVER (PARTITION BY t.job_id ORDER BY t.seq) AS left_after,
            lead(t.observed_at) OVER (PARTITION BY t.job_id ORDER BY t.seq) AS left_by
        FROM transitions t
        JOIN jobs j ON j.id = t.job_id
        WHERE t.to_status IS NOT NULL AND (t.from_status IS NULL OR t.from_status <> t.to_status)
    ) c
) s
