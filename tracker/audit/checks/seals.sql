{% from 'macros.sql' import now, plus_seconds %}
{# A checkpoint that cannot follow the one before it. #}
SELECT
    0 AS is_note, 'seals' AS name, s.id, NULL AS cluster, NULL AS jid, NULL AS seq,
    CASE
        WHEN s.sealed_at < s.previous_at THEN 'sealed_at is ' || s.sealed_at || ', but was ' || s.previous_at || ' before'
        WHEN s.sealed_at > {{ plus_seconds(now(), 60) }} THEN 'sealed_at is ' || s.sealed_at || ', in the future'
        ELSE 'it closes fewer rows than the one before it'
    END AS message
FROM (
    SELECT
        l.*, lag(l.sealed_at) OVER w AS previous_at, lag(l.last_transition_id) OVER w AS transition_id,
        lag(l.last_gap_id) OVER w AS gap_id, lag(l.last_source_id) OVER w AS source_id
    FROM seals l
    WINDOW w AS (ORDER BY l.id)
) s
WHERE s.sealed_at < s.previous_at OR s.sealed_at > {{ plus_seconds(now(), 60) }}
    OR s.last_transition_id < s.transition_id OR s.last_gap_id < s.gap_id OR s.last_source_id < s.source_id
