{% from 'macros.sql' import differ, plus_seconds %}
{# A transition that cannot follow the one before it. Times may cross by seconds: answers are recorded later than actions,
   and clocks are corrected. After a clock was set back further, times run backwards and a gap is recorded. #}
SELECT
    CASE WHEN (c.message LIKE 'observed_at %' OR c.message LIKE 'last_seen_at %') AND EXISTS (
        SELECT 1 FROM gaps g
        WHERE g.cause = 'clock_set' AND g.began_at >= {{ plus_seconds('c.observed_at', -3600) }} AND g.began_at < c.at_before
    ) THEN 1 ELSE 0 END AS is_note,
    'transitions' AS name, c.id, n.cluster, n.jid, c.seq,
    CASE WHEN n.id IS NULL THEN 'the job with id ' || c.job_id || ' is missing' ELSE c.message END AS message
FROM (
    SELECT
        s.*,
        CASE
            WHEN s.seq_before IS NULL AND s.seq = 0 THEN NULL
            WHEN s.seq_before IS NULL THEN 'the registration is missing: the first transition has seq ' || s.seq
            WHEN s.seq <> s.seq_before + 1
                THEN 'a transition is missing or there twice: seq ' || s.seq || ' follows ' || s.seq_before
            WHEN {{ differ('s.from_status', 's.status_before') }}
                THEN 'from_status is ' || coalesce(s.from_status, 'empty') || ', but the status was '
                    || coalesce(s.status_before, 'empty')
            WHEN {{ differ('s.from_state', 's.state_before') }}
                THEN 'from_state is ' || coalesce(s.from_state, 'empty') || ', but the state was ' || s.state_before
            WHEN s.polls < s.polls_before + CASE s.action WHEN 'observed' THEN 1 ELSE 0 END
                THEN 'polls is ' || s.polls || ', but was ' || s.polls_before || ' before'
            WHEN s.last_seen_at < s.seen_before
                THEN 'last_seen_at is ' || s.last_seen_at || ', but was ' || s.seen_before || ' before'
            WHEN {{ plus_seconds('s.observed_at', 60) }} < s.at_before
                THEN 'observed_at is ' || s.observed_at || ', but was ' || s.at_before || ' before'
        END AS message
    FROM (
        SELECT
            t.id, t.job_id, t.seq, t.action, t.from_status, t.from_state, t.polls, t.last_seen_at, t.observed_at,
            lag(t.seq) OVER w AS seq_before, lag(t.to_status) OVER w AS status_before, lag(t.to_state) OVER w AS state_before,
            lag(t.polls) OVER w AS polls_before, lag(t.last_seen_at) OVER w AS seen_before,
            lag(t.observed_at) OVER w AS at_before
        FROM transitions t
        WINDOW w AS (PARTITION BY t.job_id ORDER BY t.seq, t.id)
    ) s
) c
LEFT JOIN names n ON n.id = c.job_id
WHERE c.message IS NOT NULL OR n.id IS NULL
