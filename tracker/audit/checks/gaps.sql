SELECT
    0 AS is_note, 'gaps' AS name, g.id, g.cluster, NULL AS jid, NULL AS seq,
    'ended_at is ' || g.ended_at || ', but began_at is ' || g.began_at AS message
FROM gaps g
WHERE g.ended_at < g.began_at
