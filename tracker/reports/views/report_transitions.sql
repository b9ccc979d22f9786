{% from 'macros.sql' import from_base %}
{# A transition's seal is the first that reaches it, from the newest base on. #}
{% set base = "FROM seals b " ~ ("WHERE " ~ from_base('b') if mode == 'now' else "") ~ " ORDER BY b.id LIMIT 1" %}
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
    CASE
        WHEN t.id <= (SELECT b.last_transition_id {{ base }}) THEN (SELECT b.id {{ base }})
        ELSE (SELECT l.id FROM seals l WHERE l.last_transition_id >= t.id ORDER BY l.last_transition_id, l.id LIMIT 1)
    END AS seal_id
FROM transitions t
JOIN jobs j ON j.id = t.job_id
LEFT JOIN sources s ON s.id = t.source_id
