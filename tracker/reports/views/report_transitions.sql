{# A transition's seal is the first that reaches it. PostgreSQL finds it by bisection in one array of all seals: looked up
   one by one they took three times as long. #}
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
{% if sqlite %}
    (
        SELECT min(l.id) FROM seals l WHERE l.last_transition_id = (
            SELECT min(f.last_transition_id) FROM seals f WHERE f.last_transition_id >= t.id
        )
    ) AS seal_id
{% else %}
    (SELECT array_agg(l.id ORDER BY l.last_transition_id, l.id) FROM seals l)[
        1 + width_bucket(t.id - 1, (SELECT array_agg(l.last_transition_id ORDER BY l.last_transition_id, l.id) FROM seals l))
    ] AS seal_id
{% endif %}
FROM transitions t
JOIN jobs j ON j.id = t.job_id
LEFT JOIN sources s ON s.id = t.source_id
