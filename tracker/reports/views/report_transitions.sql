{# A transition's seal is the first that reaches it. #}
SELECT
    t.id,
    j.cluster,
    j.jid,
    j.kind,
    j.reference,
    t.seq,
    t.action,
    t.from_status,
    t.to_status,
    t.from_state,
    t.to_state,
    t.last_seen_at,
    t.observed_at,
    t.server_date,
    t.claimed_at,
    s.base_url,
    t.actor,
    t.anomaly,
    t.reason,
    (SELECT l.id FROM seals l WHERE l.last_transition_id >= t.id ORDER BY l.last_transition_id, l.id LIMIT 1) AS seal_id
FROM transitions t
JOIN jobs j ON j.id = t.job_id
LEFT JOIN sources s ON s.id = t.source_id
