{% from 'macros.sql' import plus_seconds %}
SELECT
    1 AS is_note, 'transitions' AS name, t.id, n.cluster, n.jid, t.seq,
    'server_date is ' || t.server_date || ', but observed_at is ' || t.observed_at AS message
FROM transitions t
JOIN names n ON n.id = t.job_id
WHERE t.server_date > {{ plus_seconds('t.observed_at', 300) }} OR t.server_date < {{ plus_seconds('t.observed_at', -300) }}
