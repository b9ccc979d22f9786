{% from 'macros.sql' import plus_seconds %}
{# What a row of each action must say and must not say; the CHECKs of the table have the same rules. #}
SELECT 0 AS is_note, 'transitions' AS name, c.id, c.cluster, c.jid, c.seq, c.message
FROM (
    SELECT
        t.id, n.cluster, n.jid, t.seq,
        CASE
            WHEN (t.action = 'registered') <> (t.seq = 0) THEN 'action is ' || t.action || ', but seq is ' || t.seq
            WHEN t.action = 'observed' AND s.id IS NULL THEN 'it is observed, but its source is missing'
            WHEN t.action = 'observed' AND s.cluster <> n.cluster
                THEN 'it is observed, but its source ' || s.id || ' belongs to cluster ' || s.cluster
            WHEN t.action = 'observed' AND (t.actor IS NOT NULL OR t.claimed_at IS NOT NULL OR t.reason IS NOT NULL)
                THEN 'it is observed, but has an actor, a claimed_at or a reason'
            WHEN t.action <> 'observed' AND t.actor IS NULL THEN 'it is ' || t.action || ', but actor is empty'
            WHEN t.action <> 'observed' AND (
                t.source_id IS NOT NULL OR t.server_date IS NOT NULL OR t.anomaly IS NOT NULL
            ) THEN 'it is ' || t.action || ', but has a source, a server_date or an anomaly, which only observed rows have'
            WHEN t.action <> 'observed' AND (t.action = 'registered') <> (t.reason IS NULL)
                THEN 'it is ' || t.action || ', but the reason is ' || coalesce(t.reason, 'missing')
            WHEN (t.action = 'attested') <> (t.claimed_at IS NOT NULL)
                THEN 'it is ' || t.action || ', but ' || CASE t.action WHEN 'attested' THEN 'claimed_at is empty' ELSE 'has a claimed_at' END
            WHEN t.claimed_at > t.observed_at THEN 'claimed_at is ' || t.claimed_at || ', after observed_at'
            WHEN t.last_seen_at > t.observed_at THEN 'last_seen_at is ' || t.last_seen_at || ', after observed_at'
            WHEN t.received_at > {{ plus_seconds('t.observed_at', 60) }} THEN 'received_at is ' || t.received_at || ', after observed_at'
            WHEN t.submitted_at > {{ plus_seconds('t.observed_at', 60) }} THEN 'submitted_at is ' || t.submitted_at || ', after observed_at'
            WHEN (t.from_status IS NULL) <> (t.last_seen_at IS NULL) THEN 'only one of from_status and last_seen_at is empty'
            WHEN t.action IN ('registered', 'amended') AND t.kind IS NULL THEN 'it is ' || t.action || ', but kind is empty'
            WHEN t.action NOT IN ('registered', 'amended') AND (
                t.kind IS NOT NULL OR t.reference IS NOT NULL OR t.received_at IS NOT NULL
                OR t.submitted_at IS NOT NULL OR t.extended_on IS NOT NULL
            ) THEN 'it is ' || t.action || ', but has declared facts'
            WHEN t.action <> 'observed' AND coalesce(t.to_status, '') <> coalesce(t.from_status, '')
                THEN 'it is ' || t.action || ', but the status changes to ' || coalesce(t.to_status, 'empty')
            WHEN t.action = 'observed' AND t.to_status IS NULL THEN 'it is observed, but to_status is empty'
            WHEN CASE t.action
                WHEN 'registered' THEN t.from_state IS NULL AND t.to_state = 'open' AND t.to_status IS NULL
                WHEN 'amended' THEN t.to_state = t.from_state
                WHEN 'reopened' THEN t.to_state = 'open' AND t.from_state IN ('failed', 'lost', 'attested', 'withdrawn')
                WHEN 'withdrawn' THEN t.to_state = 'withdrawn' AND t.from_state IN ('open', 'failed', 'lost')
                WHEN 'attested' THEN t.to_state = 'attested' AND t.from_state IN ('open', 'failed', 'lost')
                WHEN 'observed' THEN t.from_state = 'open' AND t.to_state = CASE t.to_status
                    WHEN 'done' THEN 'done'
                    WHEN 'error' THEN 'failed'
                    WHEN 'not_found' THEN CASE t.to_state WHEN 'lost' THEN 'lost' ELSE 'open' END
                    ELSE 'open'
                END
            END THEN NULL
            ELSE 'it is ' || t.action || ' with status ' || coalesce(t.to_status, 'empty') || ', from_state '
                || coalesce(t.from_state, 'empty') || ' and to_state ' || t.to_state || ', which is impossible'
        END AS message
    FROM transitions t
    LEFT JOIN names n ON n.id = t.job_id
    LEFT JOIN sources s ON s.id = t.source_id
) c
WHERE c.message IS NOT NULL
