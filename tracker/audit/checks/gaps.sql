SELECT
    0 AS is_note, 'gaps' AS name, g.id, g.cluster, NULL AS jid, NULL AS seq,
    'it ends at ' || g.ended_at || ', before it begins at ' || g.began_at AS message
FROM gaps g
WHERE g.ended_at < g.began_at
