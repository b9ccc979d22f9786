SELECT
    id, cluster, jid, kind, reference, seq, action, from_status, to_status, from_state, to_state, last_seen_at,
    observed_at, server_date, claimed_at, base_url, actor, anomaly, reason, seal_id
FROM report_transitions
WHERE anomaly IS NOT NULL
