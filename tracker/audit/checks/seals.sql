{% from 'macros.sql' import now, plus_seconds %}
{# A checkpoint that cannot follow the one before it, and one of the future: a note if it was sealed while a clock was
   ahead, which a gap that came later says. #}
SELECT
    0 AS is_note, 'seals' AS name, s.id, NULL AS cluster, NULL AS jid, NULL AS seq,
    CASE
        WHEN s.sealed_at < b.sealed_at THEN 'sealed_at is ' || s.sealed_at || ', but was ' || b.sealed_at || ' before'
        ELSE 'its last ids are lower than those of the checkpoint before it'
    END AS message
FROM seals s
JOIN seals b ON b.id = (SELECT max(p.id) FROM seals p WHERE p.id < s.id)
WHERE s.sealed_at < b.sealed_at OR s.last_transition_id < b.last_transition_id OR s.last_gap_id < b.last_gap_id
    OR s.last_source_id < b.last_source_id
UNION ALL
SELECT
    CASE WHEN EXISTS (
        SELECT 1 FROM gaps g
        WHERE g.cause = 'clock_set' AND g.ended_at < s.sealed_at
            AND g.id > (SELECT min(f.last_gap_id) FROM seals f WHERE f.sealed_at = s.sealed_at)
    ) THEN 1 ELSE 0 END,
    'seals', s.id, NULL, NULL, NULL, 'sealed_at is ' || s.sealed_at || ', in the future'
FROM seals s
WHERE s.sealed_at > {{ plus_seconds(now(), 60) }}
