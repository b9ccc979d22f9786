{% from 'macros.sql' import day_of, differ, later, least, months_later, null %}
{# Each job as its transitions leave it. Columns that no transition has are NULL or 0. Three are lower bounds: seen_at,
   when the status before the last transition was last seen; polls; and status_polls. #}
{% set declared = "('registered', 'amended')" %}
WITH heads AS (
    SELECT
        t.job_id,
        max(t.seq) AS seq,
        max(t.seq) FILTER (WHERE t.action IN {{ declared }}) AS facts_seq,
        max(t.seq) FILTER (
            WHERE t.action = 'observed' AND (t.from_status IS NULL OR t.from_status <> t.to_status)
        ) AS status_seq,
        max(t.seq) FILTER (WHERE t.action IN ('observed', 'reopened')) AS polled_seq,
        max(t.seq) FILTER (WHERE t.action <> 'amended') AS state_seq
    FROM transitions t
    GROUP BY t.job_id
),
{# Also the legal time zone when the facts were declared, and when their extension was first recorded. #}
facts AS MATERIALIZED (
    SELECT
        h.*, n.cluster, n.jid, r.observed_at AS registered_at, r.actor AS registered_by,
        f.kind, f.reference, f.received_at, f.submitted_at, f.extended_on,
        coalesce(f.received_at, f.submitted_at, r.observed_at) AS begun_at,
        coalesce(
            (
                SELECT s.legal_timezone FROM sources s
                WHERE s.cluster = n.cluster AND s.recorded_at <= f.observed_at ORDER BY s.id DESC LIMIT 1
            ),
            (SELECT s.legal_timezone FROM sources s WHERE s.cluster = n.cluster ORDER BY s.id LIMIT 1),
            ''
        ) AS timezone,
        CASE WHEN f.extended_on IS NOT NULL THEN (
            SELECT e.observed_at FROM transitions e
            WHERE e.job_id = h.job_id AND e.action IN {{ declared }} AND e.seq > coalesce((
                SELECT max(o.seq) FROM transitions o
                WHERE o.job_id = h.job_id AND o.action IN {{ declared }}
                    AND {{ differ('o.extended_on', 'f.extended_on') }}
            ), -1)
            ORDER BY e.seq LIMIT 1
        ) END AS extended_at
    FROM heads h
    JOIN names n ON n.id = h.job_id
    JOIN transitions r ON r.job_id = h.job_id AND r.seq = 0
    JOIN transitions f ON f.job_id = h.job_id AND f.seq = h.facts_seq
),
{# The local day that the deadline is counted from: the day in UTC, or the one before or after. #}
begun AS (
    SELECT
        f.*,
        CASE
            WHEN f.begun_at < d.begins_at THEN {{ later('d.day', -1) }}
            WHEN f.begun_at >= d.ends_at THEN {{ later('d.day', 1) }}
            ELSE d.day
        END AS begun_on
    FROM facts f
    LEFT JOIN zone d ON d.timezone = f.timezone AND d.day = {{ day_of('f.begun_at') }}
),
{# An extension counts if it was recorded before the deadline and moves it by at most two more months. #}
due AS (
    SELECT
        b.*, d.day AS due_on, d.ends_at AS due_at,
        CASE
            WHEN b.extended_on > d.day AND b.extended_at < d.ends_at
            THEN {{ least('b.extended_on', months_later('b.begun_on', 3)) }}
        END AS moved_to
    FROM begun b
    LEFT JOIN zone d ON d.timezone = b.timezone AND d.day = {{ months_later('b.begun_on', 1) }}
),
declared AS MATERIALIZED (
    SELECT d.*, coalesce(x.day, d.due_on) AS deadline_on, coalesce(x.ends_at, d.due_at) AS deadline_at
    FROM due d
    LEFT JOIN zone x ON x.timezone = d.timezone AND x.day = d.moved_to
)
SELECT
    d.job_id AS id, d.cluster, d.jid, d.kind, d.reference, d.received_at, d.submitted_at, d.extended_on,
    d.registered_at, d.registered_by, d.deadline_on, d.deadline_at,
    l.to_state AS state, l.to_status AS status, s.last_seen_at AS status_after, s.observed_at AS status_by,
    CASE WHEN p.action = 'observed' THEN 1 ELSE 0 END AS status_polls,
    l.last_seen_at AS seen_at,
    CASE
        WHEN e.to_state = 'open' OR e.action = 'attested' THEN NULL
        WHEN e.action = 'withdrawn' THEN e.observed_at
        ELSE e.last_seen_at
    END AS ended_after,
    CASE
        WHEN e.to_state = 'open' THEN NULL
        WHEN e.action = 'attested' THEN e.claimed_at
        ELSE e.observed_at
    END AS ended_by,
    l.seq, {{ null('timestamptz') }} AS due_at, l.polls, 0 AS failures, {{ null('text') }} AS last_error,
    {{ null('text') }} AS leased_by, {{ null('timestamptz') }} AS leased_until
FROM declared d
JOIN transitions l ON l.job_id = d.job_id AND l.seq = d.seq
JOIN transitions e ON e.job_id = d.job_id AND e.seq = d.state_seq
LEFT JOIN transitions s ON s.job_id = d.job_id AND s.seq = d.status_seq
LEFT JOIN transitions p ON p.job_id = d.job_id AND p.seq = d.polled_seq
