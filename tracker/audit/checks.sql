-- Checks what an evidence pack of tracker says. `python -m tests.checks_sql` makes it from tracker's own SQL.
--
-- For the sqlite3 shell, 3.40 or newer. First load the pack's CSV files with `.import --csv FILE TABLE`: the segments,
-- joined, into csv_transitions, csv_gaps, csv_sources; zone.csv into csv_zone; each reports/NAME.csv into csv_NAME; and
-- the number, sealed_at and last ids of each checkpoint into csv_seals. It prints a line with `NOT OK:` for each
-- finding, one with `note:` where a person should look, and last how much it has read.

-- The rows of the segments, with the types that they have in the database.

CREATE TABLE IF NOT EXISTS csv_transitions (cluster, jid, id, job_id, seq, action, from_status, to_status, from_state, to_state, last_seen_at, observed_at, server_date, claimed_at, source_id, polls, actor, anomaly, reason, kind, reference, received_at, submitted_at, extended_on);
CREATE TABLE transitions AS SELECT
    nullif(cluster, '') AS cluster,
    nullif(jid, '') AS jid,
    CAST(nullif(id, '') AS INTEGER) AS id,
    CAST(nullif(job_id, '') AS INTEGER) AS job_id,
    CAST(nullif(seq, '') AS INTEGER) AS seq,
    nullif(action, '') AS action,
    nullif(from_status, '') AS from_status,
    nullif(to_status, '') AS to_status,
    nullif(from_state, '') AS from_state,
    nullif(to_state, '') AS to_state,
    nullif(replace(replace(last_seen_at, 'T', ' '), 'Z', ''), '') AS last_seen_at,
    nullif(replace(replace(observed_at, 'T', ' '), 'Z', ''), '') AS observed_at,
    nullif(replace(replace(server_date, 'T', ' '), 'Z', ''), '') AS server_date,
    nullif(replace(replace(claimed_at, 'T', ' '), 'Z', ''), '') AS claimed_at,
    CAST(nullif(source_id, '') AS INTEGER) AS source_id,
    CAST(nullif(polls, '') AS INTEGER) AS polls,
    nullif(actor, '') AS actor,
    nullif(anomaly, '') AS anomaly,
    nullif(reason, '') AS reason,
    nullif(kind, '') AS kind,
    nullif(reference, '') AS reference,
    nullif(replace(replace(received_at, 'T', ' '), 'Z', ''), '') AS received_at,
    nullif(replace(replace(submitted_at, 'T', ' '), 'Z', ''), '') AS submitted_at,
    nullif(extended_on, '') AS extended_on
FROM csv_transitions;

CREATE TABLE IF NOT EXISTS csv_gaps (id, cluster, began_at, ended_at, cause, detail, actor);
CREATE TABLE gaps AS SELECT
    CAST(nullif(id, '') AS INTEGER) AS id,
    nullif(cluster, '') AS cluster,
    nullif(replace(replace(began_at, 'T', ' '), 'Z', ''), '') AS began_at,
    nullif(replace(replace(ended_at, 'T', ' '), 'Z', ''), '') AS ended_at,
    nullif(cause, '') AS cause,
    nullif(detail, '') AS detail,
    nullif(actor, '') AS actor
FROM csv_gaps;

CREATE TABLE IF NOT EXISTS csv_sources (id, cluster, base_url, path, timezone, archive_days, lost_after_polls, lost_after_seconds, legal_timezone, version, recorded_at);
CREATE TABLE sources AS SELECT
    CAST(nullif(id, '') AS INTEGER) AS id,
    nullif(cluster, '') AS cluster,
    nullif(base_url, '') AS base_url,
    nullif(path, '') AS path,
    nullif(timezone, '') AS timezone,
    CAST(nullif(archive_days, '') AS INTEGER) AS archive_days,
    CAST(nullif(lost_after_polls, '') AS INTEGER) AS lost_after_polls,
    CAST(nullif(lost_after_seconds, '') AS INTEGER) AS lost_after_seconds,
    nullif(legal_timezone, '') AS legal_timezone,
    nullif(version, '') AS version,
    nullif(replace(replace(recorded_at, 'T', ' '), 'Z', ''), '') AS recorded_at
FROM csv_sources;

CREATE TABLE IF NOT EXISTS csv_seals (number, sealed_at, last_transition_id, last_gap_id, last_source_id);
CREATE TABLE seals AS SELECT
    CAST(nullif(number, '') AS INTEGER) AS id,
    nullif(replace(replace(sealed_at, 'T', ' '), 'Z', ''), '') AS sealed_at,
    CAST(nullif(last_transition_id, '') AS INTEGER) AS last_transition_id,
    CAST(nullif(last_gap_id, '') AS INTEGER) AS last_gap_id,
    CAST(nullif(last_source_id, '') AS INTEGER) AS last_source_id
FROM csv_seals;

CREATE TABLE IF NOT EXISTS csv_zone (timezone, day, begins_at, ends_at);
CREATE TABLE zone AS SELECT
    timezone AS timezone,
    nullif(day, '') AS day,
    nullif(replace(replace(begins_at, 'T', ' '), 'Z', ''), '') AS begins_at,
    nullif(replace(replace(ends_at, 'T', ' '), 'Z', ''), '') AS ends_at
FROM csv_zone;

CREATE TABLE names AS SELECT DISTINCT job_id AS id, cluster, jid FROM transitions;
CREATE TABLE clock AS SELECT sealed_at AS at FROM seals ORDER BY id DESC LIMIT 1;

CREATE INDEX transitions_job_id_seq ON transitions (job_id, seq);

CREATE INDEX transitions_id ON transitions (id);

CREATE INDEX gaps_id ON gaps (id);

CREATE INDEX sources_id ON sources (id);

CREATE INDEX gaps_cluster_began_at ON gaps (cluster, began_at);

CREATE INDEX gaps_cluster_ended_at ON gaps (cluster, ended_at);

CREATE INDEX seals_id ON seals (id);

CREATE INDEX seals_last_transition_id ON seals (last_transition_id);

CREATE INDEX zone_timezone_day ON zone (timezone, day);

CREATE INDEX names_id ON names (id);

-- Each job as its transitions leave it, the clusters, and the reports, as of the last checkpoint.

CREATE TABLE jobs AS
WITH heads AS (
    SELECT
        t.job_id,
        max(t.seq) AS seq,
        max(t.seq) FILTER (WHERE t.action IN ('registered', 'amended')) AS facts_seq,
        max(t.seq) FILTER (
            WHERE t.action = 'observed' AND (t.from_status IS NULL OR t.from_status <> t.to_status)
        ) AS status_seq,
        max(t.seq) FILTER (WHERE t.action IN ('observed', 'reopened')) AS polled_seq,
        max(t.seq) FILTER (WHERE t.action <> 'amended') AS state_seq
    FROM transitions t
    GROUP BY t.job_id
),
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
            WHERE e.job_id = h.job_id AND e.action IN ('registered', 'amended') AND e.seq > coalesce((
                SELECT max(o.seq) FROM transitions o
                WHERE o.job_id = h.job_id AND o.action IN ('registered', 'amended')
                    AND o.extended_on IS NOT f.extended_on
            ), -1)
            ORDER BY e.seq LIMIT 1
        ) END AS extended_at
    FROM heads h
    JOIN names n ON n.id = h.job_id
    JOIN transitions r ON r.job_id = h.job_id AND r.seq = 0
    JOIN transitions f ON f.job_id = h.job_id AND f.seq = h.facts_seq
),
begun AS (
    SELECT
        f.*,
        CASE
            WHEN f.begun_at < d.begins_at THEN date(d.day, '-1 days')
            WHEN f.begun_at >= d.ends_at THEN date(d.day, '1 days')
            ELSE d.day
        END AS begun_on
    FROM facts f
    LEFT JOIN zone d ON d.timezone = f.timezone AND d.day = substr(f.begun_at, 1, 10)
),
due AS (
    SELECT
        b.*, d.day AS due_on, d.ends_at AS due_at,
        CASE
            WHEN b.extended_on > d.day AND b.extended_at < d.ends_at
            THEN min(b.extended_on, min(date(b.begun_on, '3 months'), date(b.begun_on, 'start of month', '4 months', '-1 day')))
        END AS moved_to
    FROM begun b
    LEFT JOIN zone d ON d.timezone = b.timezone AND d.day = min(date(b.begun_on, '1 months'), date(b.begun_on, 'start of month', '2 months', '-1 day'))
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
    l.seq, NULL AS due_at, l.polls, 0 AS failures, NULL AS last_error,
    NULL AS leased_by, NULL AS leased_until
FROM declared d
JOIN transitions l ON l.job_id = d.job_id AND l.seq = d.seq
JOIN transitions e ON e.job_id = d.job_id AND e.seq = d.state_seq
LEFT JOIN transitions s ON s.job_id = d.job_id AND s.seq = d.status_seq
LEFT JOIN transitions p ON p.job_id = d.job_id AND p.seq = d.polled_seq;

CREATE TABLE clusters AS
WITH names AS (
    SELECT s.cluster FROM main.sources s WHERE 1 = 1
    UNION
    SELECT g.cluster FROM main.gaps g WHERE 1 = 1
),
open_gaps AS (
    SELECT NULL AS cluster, NULL AS began_at, NULL AS cause, 1 AS place
)
SELECT
    n.cluster, NULL AS answered_at, NULL AS paused_until,
    NULL AS pause_cause, g.began_at AS gap_began_at, g.cause AS gap_cause, NULL AS gap_detail
FROM names n
LEFT JOIN open_gaps g ON g.cluster = n.cluster AND g.place = 1;

CREATE INDEX jobs_id ON jobs (id);

CREATE INDEX jobs_cluster ON jobs (cluster);

ANALYZE;

CREATE VIEW report_jobs AS
SELECT
    j.cluster,
    j.jid,
    j.kind,
    j.reference,
    j.state,
    j.status,
    CASE WHEN j.status IS NOT NULL THEN CASE WHEN j.status_after IS NULL AND j.submitted_at > j.status_by THEN j.status_by ELSE coalesce(j.status_after, j.submitted_at) END END AS status_after,
    j.status_by,
    j.seen_at,
    j.submitted_at,
    j.registered_at,
    j.registered_by,
    j.received_at,
    j.deadline_on,
    CASE
        WHEN j.state IN ('attested', 'withdrawn') THEN j.state
        WHEN j.state = 'done' AND j.ended_by <= j.deadline_at THEN 'met'
        WHEN j.state = 'done' AND CASE WHEN j.ended_after IS NULL AND j.submitted_at > j.ended_by THEN j.ended_by ELSE coalesce(j.ended_after, j.submitted_at) END >= j.deadline_at THEN 'missed'
        WHEN j.state IN ('done', 'lost') THEN 'undecidable'
        WHEN j.deadline_at IS NULL OR j.deadline_at > (SELECT c.at FROM clock c) THEN 'pending'
        WHEN j.state = 'failed' THEN 'overdue'
        WHEN CASE j.status WHEN 'not_found' THEN j.status_after ELSE j.seen_at END >= j.deadline_at THEN 'overdue'
        ELSE 'undecidable'
    END AS verdict,
    CASE
        WHEN j.state IN ('done', 'failed', 'lost') THEN CASE WHEN j.ended_after IS NULL AND j.submitted_at > j.ended_by THEN j.ended_by ELSE coalesce(j.ended_after, j.submitted_at) END
        ELSE j.ended_after
    END AS ended_after,
    j.ended_by,
    j.due_at AS next_poll_at,
    (((unixepoch(substr(max(coalesce(j.ended_by, (SELECT c.at FROM clock c)), coalesce(j.submitted_at, j.registered_at)), 1, 19)) * 1000000 + substr(max(coalesce(j.ended_by, (SELECT c.at FROM clock c)), coalesce(j.submitted_at, j.registered_at)), 21)) - (unixepoch(substr(coalesce(j.submitted_at, j.registered_at), 1, 19)) * 1000000 + substr(coalesce(j.submitted_at, j.registered_at), 21))) / 1000000.0) AS age_seconds,
    j.polls,
    j.failures,
    j.last_error
FROM jobs j;

CREATE VIEW report_durations AS
SELECT
    d.cluster,
    d.jid,
    d.kind,
    d.reference,
    d.submitted_at,
    d.registered_at,
    d.done_after,
    d.done_by,
    coalesce(max(0.0, (((unixepoch(substr(d.done_after, 1, 19)) * 1000000 + substr(d.done_after, 21)) - (unixepoch(substr(coalesce(d.submitted_at, d.registered_at), 1, 19)) * 1000000 + substr(coalesce(d.submitted_at, d.registered_at), 21))) / 1000000.0)), 0.0) AS seconds_min,
    (((unixepoch(substr(max(d.done_by, d.submitted_at), 1, 19)) * 1000000 + substr(max(d.done_by, d.submitted_at), 21)) - (unixepoch(substr(d.submitted_at, 1, 19)) * 1000000 + substr(d.submitted_at, 21))) / 1000000.0) AS seconds_max,
    (((unixepoch(substr(d.done_by, 1, 19)) * 1000000 + substr(d.done_by, 21)) - (unixepoch(substr(d.done_after, 1, 19)) * 1000000 + substr(d.done_after, 21))) / 1000000.0) AS uncertainty_seconds,
    CASE WHEN d.kind = 'export' THEN (strftime('%Y-%m-%d %H:%M:%S', substr(d.done_after, 1, 19), '604800 seconds') || substr(d.done_after, 20)) END AS download_by,
    d.polls
FROM (
    SELECT
        j.cluster, j.jid, j.kind, j.reference, j.submitted_at, j.registered_at,
        CASE WHEN j.ended_after IS NULL AND j.submitted_at > j.ended_by THEN j.ended_by ELSE coalesce(j.ended_after, j.submitted_at) END AS done_after, j.ended_by AS done_by, j.polls
    FROM jobs j
    WHERE j.state = 'done'
) d;

CREATE VIEW report_transitions AS
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
        WHEN t.id <= (SELECT b.last_transition_id FROM seals b  ORDER BY b.id LIMIT 1) THEN (SELECT b.id FROM seals b  ORDER BY b.id LIMIT 1)
        ELSE (SELECT l.id FROM seals l WHERE l.last_transition_id >= t.id ORDER BY l.last_transition_id, l.id LIMIT 1)
    END AS seal_id
FROM transitions t
JOIN jobs j ON j.id = t.job_id
LEFT JOIN sources s ON s.id = t.source_id;

CREATE VIEW report_statuses AS
WITH entries AS (
    SELECT
        job_id, to_status AS status, last_seen_at, observed_at,
        lead(last_seen_at) OVER (PARTITION BY job_id ORDER BY seq) AS left_after,
        lead(observed_at) OVER (PARTITION BY job_id ORDER BY seq) AS left_by
    FROM transitions
    WHERE to_status IS NOT NULL AND (from_status IS NULL OR from_status <> to_status)
)
SELECT
    j.cluster,
    j.jid,
    j.kind,
    j.reference,
    e.status,
    CASE WHEN e.last_seen_at IS NULL AND j.submitted_at > e.observed_at THEN e.observed_at ELSE coalesce(e.last_seen_at, j.submitted_at) END AS entered_after,
    e.observed_at AS entered_by,
    e.left_after,
    e.left_by,
    coalesce(max(0.0, (((unixepoch(substr(CASE WHEN e.left_by IS NULL THEN j.seen_at ELSE e.left_after END, 1, 19)) * 1000000 + substr(CASE WHEN e.left_by IS NULL THEN j.seen_at ELSE e.left_after END, 21)) - (unixepoch(substr(e.observed_at, 1, 19)) * 1000000 + substr(e.observed_at, 21))) / 1000000.0)), 0.0) AS seconds_min,
    (((unixepoch(substr(CASE WHEN e.left_by IS NULL AND j.state = 'open' THEN (SELECT c.at FROM clock c) ELSE e.left_by END, 1, 19)) * 1000000 + substr(CASE WHEN e.left_by IS NULL AND j.state = 'open' THEN (SELECT c.at FROM clock c) ELSE e.left_by END, 21)) - (unixepoch(substr(CASE WHEN e.last_seen_at IS NULL AND j.submitted_at > e.observed_at THEN e.observed_at ELSE coalesce(e.last_seen_at, j.submitted_at) END, 1, 19)) * 1000000 + substr(CASE WHEN e.last_seen_at IS NULL AND j.submitted_at > e.observed_at THEN e.observed_at ELSE coalesce(e.last_seen_at, j.submitted_at) END, 21))) / 1000000.0) AS seconds_max
FROM entries e
JOIN jobs j ON j.id = e.job_id;

CREATE VIEW report_monthly AS
SELECT
    r.cluster,
    r.kind,
    r.month AS month,
    count(*) AS submitted,
    count(*) FILTER (WHERE r.state = 'open') AS open,
    count(*) FILTER (WHERE r.state = 'done') AS done,
    count(*) FILTER (WHERE r.state = 'failed') AS failed,
    count(*) FILTER (WHERE r.state = 'lost') AS lost,
    count(*) FILTER (WHERE r.state = 'attested') AS attested,
    count(*) FILTER (WHERE r.state = 'withdrawn') AS withdrawn,
    count(*) FILTER (WHERE r.seconds <= 86400) AS done_within_1d,
    count(*) FILTER (WHERE r.seconds <= 604800) AS done_within_7d,
    count(*) FILTER (WHERE r.seconds <= 1209600) AS done_within_14d,
    count(*) FILTER (WHERE r.verdict = 'met') AS met,
    count(*) FILTER (WHERE r.verdict = 'missed') AS missed,
    count(*) FILTER (WHERE r.verdict = 'undecidable') AS undecidable,
    count(*) FILTER (WHERE r.verdict = 'pending') AS pending,
    count(*) FILTER (WHERE r.verdict = 'overdue') AS overdue
FROM (
    SELECT
        j.cluster, j.kind, substr(coalesce(j.submitted_at, j.registered_at), 1, 7) AS month, j.state,
        CASE WHEN j.state = 'done' THEN (((unixepoch(substr(max(j.ended_by, j.submitted_at), 1, 19)) * 1000000 + substr(max(j.ended_by, j.submitted_at), 21)) - (unixepoch(substr(j.submitted_at, 1, 19)) * 1000000 + substr(j.submitted_at, 21))) / 1000000.0) END AS seconds,
        CASE
        WHEN j.state IN ('attested', 'withdrawn') THEN j.state
        WHEN j.state = 'done' AND j.ended_by <= j.deadline_at THEN 'met'
        WHEN j.state = 'done' AND CASE WHEN j.ended_after IS NULL AND j.submitted_at > j.ended_by THEN j.ended_by ELSE coalesce(j.ended_after, j.submitted_at) END >= j.deadline_at THEN 'missed'
        WHEN j.state IN ('done', 'lost') THEN 'undecidable'
        WHEN j.deadline_at IS NULL OR j.deadline_at > (SELECT c.at FROM clock c) THEN 'pending'
        WHEN j.state = 'failed' THEN 'overdue'
        WHEN CASE j.status WHEN 'not_found' THEN j.status_after ELSE j.seen_at END >= j.deadline_at THEN 'overdue'
        ELSE 'undecidable'
    END AS verdict
    FROM jobs j
) r
GROUP BY r.month, r.kind, r.cluster;

CREATE VIEW report_deadlines AS
WITH today AS (
    SELECT s.cluster, z.day
    FROM (SELECT cluster, legal_timezone, row_number() OVER (PARTITION BY cluster ORDER BY id DESC) AS place FROM sources) s
    JOIN zone z ON z.timezone = s.legal_timezone AND z.begins_at <= (SELECT c.at FROM clock c) AND z.ends_at > (SELECT c.at FROM clock c)
    WHERE s.place = 1
)
SELECT
    j.cluster,
    j.jid,
    j.kind,
    j.reference,
    j.state,
    j.received_at,
    r.received_at AS received_at_first,
    coalesce(a.amendments, 0) AS amendments,
    CASE
        WHEN j.received_at IS NOT NULL THEN 'received'
        WHEN j.submitted_at IS NOT NULL THEN 'submitted'
        ELSE 'registered'
    END AS basis,
    j.deadline_on,
    j.deadline_at,
    j.extended_on,
    CASE WHEN j.state = 'done' THEN CASE WHEN j.ended_after IS NULL AND j.submitted_at > j.ended_by THEN j.ended_by ELSE coalesce(j.ended_after, j.submitted_at) END END AS done_after,
    CASE WHEN j.state = 'done' THEN j.ended_by END AS done_by,
    CASE
        WHEN j.state IN ('attested', 'withdrawn') THEN j.state
        WHEN j.state = 'done' AND j.ended_by <= j.deadline_at THEN 'met'
        WHEN j.state = 'done' AND CASE WHEN j.ended_after IS NULL AND j.submitted_at > j.ended_by THEN j.ended_by ELSE coalesce(j.ended_after, j.submitted_at) END >= j.deadline_at THEN 'missed'
        WHEN j.state IN ('done', 'lost') THEN 'undecidable'
        WHEN j.deadline_at IS NULL OR j.deadline_at > (SELECT c.at FROM clock c) THEN 'pending'
        WHEN j.state = 'failed' THEN 'overdue'
        WHEN CASE j.status WHEN 'not_found' THEN j.status_after ELSE j.seen_at END >= j.deadline_at THEN 'overdue'
        ELSE 'undecidable'
    END AS verdict,
    CASE WHEN j.state IN ('open', 'failed', 'lost') THEN CAST(julianday(j.deadline_on) - julianday(coalesce(d.day, substr((SELECT c.at FROM clock c), 1, 10))) AS INTEGER) END AS days_left
FROM jobs j
LEFT JOIN transitions r ON r.job_id = j.id AND r.seq = 0
LEFT JOIN (
    SELECT t.job_id, count(*) AS amendments FROM transitions t WHERE t.action = 'amended' GROUP BY t.job_id
) a ON a.job_id = j.id
LEFT JOIN today d ON d.cluster = j.cluster;

CREATE VIEW report_requests AS
SELECT
    r.reference,
    count(*) AS jobs,
    count(*) FILTER (WHERE r.state = 'open') AS open,
    count(*) FILTER (WHERE r.state = 'done') AS done,
    count(*) FILTER (WHERE r.state NOT IN ('open', 'done')) AS not_done,
    min(r.received_at) AS received_at,
    min(r.deadline_on) AS deadline_on,
    CASE WHEN count(*) FILTER (WHERE r.state NOT IN ('done', 'withdrawn')) = 0 THEN max(r.done_after) END AS done_after,
    CASE WHEN count(*) FILTER (WHERE r.state NOT IN ('done', 'withdrawn')) = 0 THEN max(r.done_by) END AS done_by,
    CASE
        WHEN count(*) FILTER (WHERE r.verdict = 'missed') > 0 THEN 'missed'
        WHEN count(*) FILTER (WHERE r.verdict = 'overdue') > 0 THEN 'overdue'
        WHEN count(*) FILTER (WHERE r.verdict = 'undecidable') > 0 THEN 'undecidable'
        WHEN count(*) FILTER (WHERE r.verdict = 'pending') > 0 THEN 'pending'
        WHEN count(*) FILTER (WHERE r.verdict = 'attested') > 0 THEN 'attested'
        WHEN count(*) FILTER (WHERE r.verdict = 'met') > 0 THEN 'met'
        ELSE 'withdrawn'
    END AS verdict
FROM (
    SELECT
        j.reference, j.state, j.received_at, j.deadline_on,
        CASE WHEN j.state = 'done' THEN CASE WHEN j.ended_after IS NULL AND j.submitted_at > j.ended_by THEN j.ended_by ELSE coalesce(j.ended_after, j.submitted_at) END END AS done_after,
        CASE WHEN j.state = 'done' THEN j.ended_by END AS done_by,
        CASE
        WHEN j.state IN ('attested', 'withdrawn') THEN j.state
        WHEN j.state = 'done' AND j.ended_by <= j.deadline_at THEN 'met'
        WHEN j.state = 'done' AND CASE WHEN j.ended_after IS NULL AND j.submitted_at > j.ended_by THEN j.ended_by ELSE coalesce(j.ended_after, j.submitted_at) END >= j.deadline_at THEN 'missed'
        WHEN j.state IN ('done', 'lost') THEN 'undecidable'
        WHEN j.deadline_at IS NULL OR j.deadline_at > (SELECT c.at FROM clock c) THEN 'pending'
        WHEN j.state = 'failed' THEN 'overdue'
        WHEN CASE j.status WHEN 'not_found' THEN j.status_after ELSE j.seen_at END >= j.deadline_at THEN 'overdue'
        ELSE 'undecidable'
    END AS verdict
    FROM jobs j
    WHERE j.reference IS NOT NULL
) r
GROUP BY r.reference;

CREATE VIEW report_anomalies AS
SELECT
    id, cluster, jid, kind, reference, seq, action, from_status, to_status, from_state, to_state, last_seen_at,
    observed_at, server_date, claimed_at, base_url, actor, anomaly, reason, seal_id
FROM report_transitions
WHERE anomaly IS NOT NULL;

CREATE VIEW report_gaps AS
WITH all_gaps AS (
    SELECT id, cluster, began_at, ended_at, ended_at AS until_at, 0 AS is_open, cause, detail FROM gaps
    UNION ALL
    SELECT NULL AS id, cluster, gap_began_at, NULL AS ended_at, (SELECT c.at FROM clock c) AS until_at, 1 AS is_open, gap_cause, gap_detail
    FROM clusters WHERE gap_began_at IS NOT NULL
),
changes AS (
    SELECT
        job_id, to_state, observed_at AS began_at,
        lead(observed_at) OVER (PARTITION BY job_id ORDER BY seq) AS ended_at
    FROM transitions
    WHERE from_state IS NULL OR from_state <> to_state
),
spells AS (
    SELECT c.job_id, j.cluster, c.began_at, c.ended_at FROM changes c JOIN jobs j ON j.id = c.job_id WHERE c.to_state = 'open'
)
SELECT
    g.cluster,
    g.began_at,
    g.ended_at,
    g.is_open,
    g.cause,
    g.detail,
    (((unixepoch(substr(g.until_at, 1, 19)) * 1000000 + substr(g.until_at, 21)) - (unixepoch(substr(g.began_at, 1, 19)) * 1000000 + substr(g.began_at, 21))) / 1000000.0) AS seconds,
    count(DISTINCT s.job_id) AS open_jobs
FROM all_gaps g
LEFT JOIN spells s ON s.cluster = g.cluster AND s.began_at < g.until_at AND (s.ended_at IS NULL OR s.ended_at > g.began_at)
GROUP BY g.id, g.cluster, g.began_at, g.ended_at, g.until_at, g.is_open, g.cause, g.detail;

CREATE VIEW report_coverage AS
WITH all_gaps AS (
    SELECT id, cluster, began_at, ended_at, ended_at AS until_at, 0 AS is_open, cause, detail FROM gaps
    UNION ALL
    SELECT NULL AS id, cluster, gap_began_at, NULL AS ended_at, (SELECT c.at FROM clock c) AS until_at, 1 AS is_open, gap_cause, gap_detail
    FROM clusters WHERE gap_began_at IS NOT NULL
),
marked AS (
    SELECT cluster, began_at, until_at, CASE WHEN began_at <= max(until_at) OVER (
            PARTITION BY cluster ORDER BY began_at, until_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) THEN 0 ELSE 1 END AS is_first
    FROM all_gaps
),
numbered AS (
    SELECT marked.*, sum(is_first) OVER (PARTITION BY cluster ORDER BY began_at, until_at ROWS UNBOUNDED PRECEDING) AS stretch
    FROM marked
),
stretches AS (
    SELECT cluster, (unixepoch(substr(min(began_at), 1, 19)) * 1000000 + substr(min(began_at), 21)) AS began, (unixepoch(substr(max(until_at), 1, 19)) * 1000000 + substr(max(until_at), 21)) AS until
    FROM numbered GROUP BY cluster, stretch
),
lives AS MATERIALIZED (
    SELECT j.id, j.cluster, (unixepoch(substr(j.registered_at, 1, 19)) * 1000000 + substr(j.registered_at, 21)) AS began, (unixepoch(substr(coalesce(j.ended_by, (SELECT c.at FROM clock c)), 1, 19)) * 1000000 + substr(coalesce(j.ended_by, (SELECT c.at FROM clock c)), 21)) AS until
    FROM jobs j
),
unobserved AS (
    SELECT l.id, l.until - l.began AS life, sum(min(s.until, l.until) - max(s.began, l.began)) AS total, max(min(s.until, l.until) - max(s.began, l.began)) AS longest
    FROM lives l
    JOIN stretches s ON s.cluster = l.cluster AND s.began < l.until AND s.until > l.began
    WHERE l.began < l.until
    GROUP BY l.id, l.began, l.until
)
SELECT
    j.cluster,
    j.jid,
    coalesce(CAST(u.life - u.total AS double precision) / u.life, 1.0) AS covered_share,
    coalesce(u.longest / CAST(1000000 AS double precision), 0.0) AS longest_unobserved_seconds
FROM jobs j
LEFT JOIN unobserved u ON u.id = j.id;

CREATE VIEW report_clusters AS
WITH RECURSIVE names(cluster) AS (
    SELECT min(j.cluster) FROM jobs j
    UNION ALL
    SELECT (SELECT min(j.cluster) FROM jobs j WHERE j.cluster > last.cluster) FROM names last
    WHERE last.cluster IS NOT NULL
)
SELECT
    n.cluster,
    (
        SELECT count(*) FROM jobs j
        WHERE j.cluster = n.cluster AND j.state IN ('open', 'failed', 'lost') AND j.state = 'open'
    ) AS open,
    (
        SELECT count(*) FROM jobs j
        WHERE j.cluster = n.cluster AND j.due_at < (strftime('%Y-%m-%d %H:%M:%S', substr((SELECT c.at FROM clock c), 1, 19), '-60 seconds') || substr((SELECT c.at FROM clock c), 20))
    ) AS polls_behind,
    c.answered_at,
    c.paused_until,
    c.pause_cause,
    (
        SELECT j.deadline_on FROM jobs j
        WHERE j.cluster = n.cluster AND j.state IN ('open', 'failed', 'lost') AND j.deadline_at > (SELECT c.at FROM clock c)
        ORDER BY j.deadline_at LIMIT 1
    ) AS next_deadline_on
FROM (SELECT cluster FROM clusters UNION SELECT cluster FROM names WHERE cluster IS NOT NULL) n
LEFT JOIN clusters c ON c.cluster = n.cluster;

-- The checks: each SELECT lists rows that no possible history has.

SELECT replace(replace(replace(replace(CASE f.is_note WHEN 1 THEN 'note: ' ELSE 'NOT OK: ' END || f.name || ' id ' || coalesce(f.id, 'empty') || coalesce(', job ' || f.jid, '') || coalesce(' of cluster ' || f.cluster, '') || coalesce(', seq ' || f.seq, '') || ': ' || f.message, char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (
SELECT
    0 AS is_note, 'transitions' AS name, r.id, NULL AS cluster, NULL AS jid, NULL AS seq,
    CASE WHEN count(*) > 1 THEN count(*) || ' rows have this id' ELSE 'no checkpoint closes this row' END AS message
FROM transitions r
GROUP BY r.id
HAVING count(*) > 1 OR r.id > (SELECT max(s.last_transition_id) FROM seals s)
UNION ALL
SELECT
    0 AS is_note, 'gaps' AS name, r.id, NULL AS cluster, NULL AS jid, NULL AS seq,
    CASE WHEN count(*) > 1 THEN count(*) || ' rows have this id' ELSE 'no checkpoint closes this row' END AS message
FROM gaps r
GROUP BY r.id
HAVING count(*) > 1 OR r.id > (SELECT max(s.last_gap_id) FROM seals s)
UNION ALL
SELECT
    0 AS is_note, 'sources' AS name, r.id, NULL AS cluster, NULL AS jid, NULL AS seq,
    CASE WHEN count(*) > 1 THEN count(*) || ' rows have this id' ELSE 'no checkpoint closes this row' END AS message
FROM sources r
GROUP BY r.id
HAVING count(*) > 1 OR r.id > (SELECT max(s.last_source_id) FROM seals s)
UNION ALL
SELECT 0, 'jobs', min(n.id), min(n.cluster), min(n.jid), NULL, 'it has more than one id, cluster or jid'
FROM names n
GROUP BY n.id
HAVING count(*) > 1
UNION ALL
SELECT 0, 'jobs', min(n.id), min(n.cluster), min(n.jid), NULL, 'it has more than one id, cluster or jid'
FROM names n
GROUP BY n.cluster, n.jid
HAVING count(*) > 1
) f;

SELECT replace(replace(replace(replace(CASE f.is_note WHEN 1 THEN 'note: ' ELSE 'NOT OK: ' END || f.name || ' id ' || coalesce(f.id, 'empty') || coalesce(', job ' || f.jid, '') || coalesce(' of cluster ' || f.cluster, '') || coalesce(', seq ' || f.seq, '') || ': ' || f.message, char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (
SELECT
    CASE WHEN (c.message LIKE 'observed_at %' OR c.message LIKE 'last_seen_at %') AND EXISTS (
        SELECT 1 FROM gaps g
        WHERE g.cause = 'clock_set' AND g.began_at >= (strftime('%Y-%m-%d %H:%M:%S', substr(c.observed_at, 1, 19), '-3600 seconds') || substr(c.observed_at, 20)) AND g.began_at < c.at_before
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
            WHEN s.from_status IS NOT s.status_before
                THEN 'from_status is ' || coalesce(s.from_status, 'empty') || ', but the status was '
                    || coalesce(s.status_before, 'empty')
            WHEN s.from_state IS NOT s.state_before
                THEN 'from_state is ' || coalesce(s.from_state, 'empty') || ', but the state was ' || s.state_before
            WHEN s.polls < s.polls_before + CASE s.action WHEN 'observed' THEN 1 ELSE 0 END
                THEN 'polls is ' || s.polls || ', but was ' || s.polls_before || ' before'
            WHEN s.last_seen_at < s.seen_before
                THEN 'last_seen_at is ' || s.last_seen_at || ', but was ' || s.seen_before || ' before'
            WHEN (strftime('%Y-%m-%d %H:%M:%S', substr(s.observed_at, 1, 19), '60 seconds') || substr(s.observed_at, 20)) < s.at_before
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
) f;

SELECT replace(replace(replace(replace(CASE f.is_note WHEN 1 THEN 'note: ' ELSE 'NOT OK: ' END || f.name || ' id ' || coalesce(f.id, 'empty') || coalesce(', job ' || f.jid, '') || coalesce(' of cluster ' || f.cluster, '') || coalesce(', seq ' || f.seq, '') || ': ' || f.message, char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (
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
            WHEN t.received_at > (strftime('%Y-%m-%d %H:%M:%S', substr(t.observed_at, 1, 19), '60 seconds') || substr(t.observed_at, 20)) THEN 'received_at is ' || t.received_at || ', after observed_at'
            WHEN t.submitted_at > (strftime('%Y-%m-%d %H:%M:%S', substr(t.observed_at, 1, 19), '60 seconds') || substr(t.observed_at, 20)) THEN 'submitted_at is ' || t.submitted_at || ', after observed_at'
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
) f;

SELECT replace(replace(replace(replace(CASE f.is_note WHEN 1 THEN 'note: ' ELSE 'NOT OK: ' END || f.name || ' id ' || coalesce(f.id, 'empty') || coalesce(', job ' || f.jid, '') || coalesce(' of cluster ' || f.cluster, '') || coalesce(', seq ' || f.seq, '') || ': ' || f.message, char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (
SELECT
    0 AS is_note, 'gaps' AS name, g.id, g.cluster, NULL AS jid, NULL AS seq,
    'ended_at is ' || g.ended_at || ', but began_at is ' || g.began_at AS message
FROM gaps g
WHERE g.ended_at < g.began_at
) f;

SELECT replace(replace(replace(replace(CASE f.is_note WHEN 1 THEN 'note: ' ELSE 'NOT OK: ' END || f.name || ' id ' || coalesce(f.id, 'empty') || coalesce(', job ' || f.jid, '') || coalesce(' of cluster ' || f.cluster, '') || coalesce(', seq ' || f.seq, '') || ': ' || f.message, char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (
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
WHERE s.sealed_at > (strftime('%Y-%m-%d %H:%M:%S', substr((SELECT c.at FROM clock c), 1, 19), '60 seconds') || substr((SELECT c.at FROM clock c), 20))
) f;

SELECT replace(replace(replace(replace(CASE f.is_note WHEN 1 THEN 'note: ' ELSE 'NOT OK: ' END || f.name || ' id ' || coalesce(f.id, 'empty') || coalesce(', job ' || f.jid, '') || coalesce(' of cluster ' || f.cluster, '') || coalesce(', seq ' || f.seq, '') || ': ' || f.message, char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (
WITH checkpoints AS (
    SELECT
        s.sealed_at, lag(s.sealed_at) OVER (ORDER BY s.id) AS previous_at,
        lag(s.last_transition_id, 1, 0) OVER (ORDER BY s.id) AS before_transition_id, s.last_transition_id,
        lag(s.last_gap_id, 1, 0) OVER (ORDER BY s.id) AS before_gap_id, s.last_gap_id,
        lag(s.last_source_id, 1, 0) OVER (ORDER BY s.id) AS before_source_id, s.last_source_id
    FROM (
        SELECT b.id, b.sealed_at, b.last_transition_id, b.last_gap_id, b.last_source_id FROM seals b
        
        UNION ALL
        SELECT (SELECT coalesce(max(id), 0) + 1 FROM seals), (SELECT c.at FROM clock c), 9223372036854775807, 9223372036854775807, 9223372036854775807
    ) s
),
steps AS (
    SELECT g.began_at, g.ended_at, k.previous_at, k.sealed_at
    FROM gaps g
    JOIN checkpoints k ON g.id > k.before_gap_id AND g.id <= k.last_gap_id
    WHERE g.cause = 'clock_set'
),
ranges AS (
    SELECT k.*, (strftime('%Y-%m-%d %H:%M:%S', substr(k.previous_at, 1, 19), '-3600 seconds') || substr(k.previous_at, 20)) AS earliest_at, (strftime('%Y-%m-%d %H:%M:%S', substr(k.sealed_at, 1, 19), '60 seconds') || substr(k.sealed_at, 20)) AS latest_at
    FROM checkpoints k
),
outside AS (
    SELECT 'transitions' AS name, t.id, t.observed_at AS at, 'observed_at' AS what, r.earliest_at, r.latest_at, r.sealed_at
    FROM ranges r
    CROSS JOIN transitions t
    WHERE t.id > r.before_transition_id AND t.id <= r.last_transition_id AND (t.observed_at < r.earliest_at OR t.observed_at > r.latest_at)
    UNION ALL
    SELECT 'gaps' AS name, t.id, t.ended_at AS at, 'ended_at' AS what, r.earliest_at, r.latest_at, r.sealed_at
    FROM ranges r
    CROSS JOIN gaps t
    WHERE t.id > r.before_gap_id AND t.id <= r.last_gap_id AND (t.ended_at < r.earliest_at OR t.ended_at > r.latest_at)
    UNION ALL
    SELECT 'sources' AS name, t.id, t.recorded_at AS at, 'recorded_at' AS what, r.earliest_at, r.latest_at, r.sealed_at
    FROM ranges r
    CROSS JOIN sources t
    WHERE t.id > r.before_source_id AND t.id <= r.last_source_id AND (t.recorded_at < r.earliest_at OR t.recorded_at > r.latest_at)

)
SELECT
    CASE WHEN EXISTS (
        SELECT 1 FROM steps s
        WHERE (o.at <= s.previous_at AND o.at >= (strftime('%Y-%m-%d %H:%M:%S', substr(s.began_at, 1, 19), '-3600 seconds') || substr(s.began_at, 20)))
            OR (o.at > o.latest_at AND o.sealed_at IN (s.previous_at, s.sealed_at))
    ) THEN 1 ELSE 0 END AS is_note,
    o.name, o.id, coalesce(n.cluster, g.cluster, s.cluster) AS cluster, n.jid, t.seq,
    o.what || ' is ' || o.at || ', but its checkpoint closes rows '
        || coalesce('from ' || o.earliest_at || ' ', '') || 'to ' || o.latest_at AS message
FROM outside o
LEFT JOIN transitions t ON o.name = 'transitions' AND t.id = o.id
LEFT JOIN names n ON n.id = t.job_id
LEFT JOIN gaps g ON o.name = 'gaps' AND g.id = o.id
LEFT JOIN sources s ON o.name = 'sources' AND s.id = o.id
) f;

SELECT replace(replace(replace(replace(CASE f.is_note WHEN 1 THEN 'note: ' ELSE 'NOT OK: ' END || f.name || ' id ' || coalesce(f.id, 'empty') || coalesce(', job ' || f.jid, '') || coalesce(' of cluster ' || f.cluster, '') || coalesce(', seq ' || f.seq, '') || ': ' || f.message, char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (
SELECT
    1 AS is_note, 'transitions' AS name, t.id, n.cluster, n.jid, t.seq,
    'server_date is ' || t.server_date || ', but observed_at is ' || t.observed_at AS message
FROM transitions t
JOIN names n ON n.id = t.job_id
WHERE t.server_date > (strftime('%Y-%m-%d %H:%M:%S', substr(t.observed_at, 1, 19), '300 seconds') || substr(t.observed_at, 20)) OR t.server_date < (strftime('%Y-%m-%d %H:%M:%S', substr(t.observed_at, 1, 19), '-300 seconds') || substr(t.observed_at, 20))
) f;

-- The published reports have the rows that follow from the segments, and no others.

CREATE TABLE IF NOT EXISTS csv_report_jobs (cluster, jid, kind, reference, state, status, status_after, status_by, seen_at, submitted_at, registered_at, registered_by, received_at, deadline_on, verdict, ended_after, ended_by, next_poll_at, age_seconds, polls, failures, last_error);
CREATE TABLE right_report_jobs AS SELECT
    coalesce(cluster, '') AS cluster,
    coalesce(jid, '') AS jid,
    coalesce(kind, '') AS kind,
    coalesce(reference, '') AS reference,
    coalesce(state, '') AS state,
    coalesce(status, '') AS status,
    coalesce(replace(status_after, ' ', 'T') || 'Z', '') AS status_after,
    coalesce(replace(status_by, ' ', 'T') || 'Z', '') AS status_by,
    coalesce(replace(seen_at, ' ', 'T') || 'Z', '') AS seen_at,
    coalesce(replace(submitted_at, ' ', 'T') || 'Z', '') AS submitted_at,
    coalesce(replace(registered_at, ' ', 'T') || 'Z', '') AS registered_at,
    coalesce(registered_by, '') AS registered_by,
    coalesce(replace(received_at, ' ', 'T') || 'Z', '') AS received_at,
    coalesce(CAST(deadline_on AS text), '') AS deadline_on,
    coalesce(verdict, '') AS verdict,
    coalesce(replace(ended_after, ' ', 'T') || 'Z', '') AS ended_after,
    coalesce(replace(ended_by, ' ', 'T') || 'Z', '') AS ended_by,
    '' AS next_poll_at,
    coalesce(CASE WHEN age_seconds IS NOT NULL THEN printf('%.6f', age_seconds) END, '') AS age_seconds,
    coalesce(CAST(polls AS text), '') AS polls,
    '' AS failures,
    '' AS last_error
FROM report_jobs;

SELECT replace(replace(replace(replace('NOT OK: reports/report_jobs.csv has a row that does not follow from the segments: ' || substr(cluster || ',' || jid || ',' || kind || ',' || reference || ',' || state || ',' || status || ',' || status_after || ',' || status_by || ',' || seen_at || ',' || submitted_at || ',' || registered_at || ',' || registered_by || ',' || received_at || ',' || deadline_on || ',' || verdict || ',' || ended_after || ',' || ended_by || ',' || next_poll_at || ',' || age_seconds || ',' || polls || ',' || failures || ',' || last_error, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT cluster, jid, kind, reference, state, status, status_after, status_by, seen_at, submitted_at, registered_at, registered_by, received_at, deadline_on, verdict, ended_after, ended_by, next_poll_at, age_seconds, polls, failures, last_error FROM csv_report_jobs EXCEPT SELECT cluster, jid, kind, reference, state, status, status_after, status_by, seen_at, submitted_at, registered_at, registered_by, received_at, deadline_on, verdict, ended_after, ended_by, next_poll_at, age_seconds, polls, failures, last_error FROM right_report_jobs);

SELECT replace(replace(replace(replace('NOT OK: reports/report_jobs.csv lacks a row that follows from the segments: ' || substr(cluster || ',' || jid || ',' || kind || ',' || reference || ',' || state || ',' || status || ',' || status_after || ',' || status_by || ',' || seen_at || ',' || submitted_at || ',' || registered_at || ',' || registered_by || ',' || received_at || ',' || deadline_on || ',' || verdict || ',' || ended_after || ',' || ended_by || ',' || next_poll_at || ',' || age_seconds || ',' || polls || ',' || failures || ',' || last_error, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT cluster, jid, kind, reference, state, status, status_after, status_by, seen_at, submitted_at, registered_at, registered_by, received_at, deadline_on, verdict, ended_after, ended_by, next_poll_at, age_seconds, polls, failures, last_error FROM right_report_jobs EXCEPT SELECT cluster, jid, kind, reference, state, status, status_after, status_by, seen_at, submitted_at, registered_at, registered_by, received_at, deadline_on, verdict, ended_after, ended_by, next_poll_at, age_seconds, polls, failures, last_error FROM csv_report_jobs);

SELECT 'NOT OK: reports/report_jobs.csv has ' || c.rows || ' rows, but from the segments follow ' || r.rows
FROM (SELECT count(*) AS rows FROM csv_report_jobs) c, (SELECT count(*) AS rows FROM right_report_jobs) r
WHERE c.rows <> r.rows;

CREATE TABLE IF NOT EXISTS csv_report_durations (cluster, jid, kind, reference, submitted_at, registered_at, done_after, done_by, seconds_min, seconds_max, uncertainty_seconds, download_by, polls);
CREATE TABLE right_report_durations AS SELECT
    coalesce(cluster, '') AS cluster,
    coalesce(jid, '') AS jid,
    coalesce(kind, '') AS kind,
    coalesce(reference, '') AS reference,
    coalesce(replace(submitted_at, ' ', 'T') || 'Z', '') AS submitted_at,
    coalesce(replace(registered_at, ' ', 'T') || 'Z', '') AS registered_at,
    coalesce(replace(done_after, ' ', 'T') || 'Z', '') AS done_after,
    coalesce(replace(done_by, ' ', 'T') || 'Z', '') AS done_by,
    coalesce(CASE WHEN seconds_min IS NOT NULL THEN printf('%.6f', seconds_min) END, '') AS seconds_min,
    coalesce(CASE WHEN seconds_max IS NOT NULL THEN printf('%.6f', seconds_max) END, '') AS seconds_max,
    coalesce(CASE WHEN uncertainty_seconds IS NOT NULL THEN printf('%.6f', uncertainty_seconds) END, '') AS uncertainty_seconds,
    coalesce(replace(download_by, ' ', 'T') || 'Z', '') AS download_by,
    coalesce(CAST(polls AS text), '') AS polls
FROM report_durations;

SELECT replace(replace(replace(replace('NOT OK: reports/report_durations.csv has a row that does not follow from the segments: ' || substr(cluster || ',' || jid || ',' || kind || ',' || reference || ',' || submitted_at || ',' || registered_at || ',' || done_after || ',' || done_by || ',' || seconds_min || ',' || seconds_max || ',' || uncertainty_seconds || ',' || download_by || ',' || polls, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT cluster, jid, kind, reference, submitted_at, registered_at, done_after, done_by, seconds_min, seconds_max, uncertainty_seconds, download_by, polls FROM csv_report_durations EXCEPT SELECT cluster, jid, kind, reference, submitted_at, registered_at, done_after, done_by, seconds_min, seconds_max, uncertainty_seconds, download_by, polls FROM right_report_durations);

SELECT replace(replace(replace(replace('NOT OK: reports/report_durations.csv lacks a row that follows from the segments: ' || substr(cluster || ',' || jid || ',' || kind || ',' || reference || ',' || submitted_at || ',' || registered_at || ',' || done_after || ',' || done_by || ',' || seconds_min || ',' || seconds_max || ',' || uncertainty_seconds || ',' || download_by || ',' || polls, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT cluster, jid, kind, reference, submitted_at, registered_at, done_after, done_by, seconds_min, seconds_max, uncertainty_seconds, download_by, polls FROM right_report_durations EXCEPT SELECT cluster, jid, kind, reference, submitted_at, registered_at, done_after, done_by, seconds_min, seconds_max, uncertainty_seconds, download_by, polls FROM csv_report_durations);

SELECT 'NOT OK: reports/report_durations.csv has ' || c.rows || ' rows, but from the segments follow ' || r.rows
FROM (SELECT count(*) AS rows FROM csv_report_durations) c, (SELECT count(*) AS rows FROM right_report_durations) r
WHERE c.rows <> r.rows;

CREATE TABLE IF NOT EXISTS csv_report_transitions (id, cluster, jid, kind, reference, seq, action, from_status, to_status, from_state, to_state, last_seen_at, observed_at, server_date, claimed_at, base_url, actor, anomaly, reason, seal_id);
CREATE TABLE right_report_transitions AS SELECT
    coalesce(CAST(id AS text), '') AS id,
    coalesce(cluster, '') AS cluster,
    coalesce(jid, '') AS jid,
    coalesce(kind, '') AS kind,
    coalesce(reference, '') AS reference,
    coalesce(CAST(seq AS text), '') AS seq,
    coalesce(action, '') AS action,
    coalesce(from_status, '') AS from_status,
    coalesce(to_status, '') AS to_status,
    coalesce(from_state, '') AS from_state,
    coalesce(to_state, '') AS to_state,
    coalesce(replace(last_seen_at, ' ', 'T') || 'Z', '') AS last_seen_at,
    coalesce(replace(observed_at, ' ', 'T') || 'Z', '') AS observed_at,
    coalesce(replace(server_date, ' ', 'T') || 'Z', '') AS server_date,
    coalesce(replace(claimed_at, ' ', 'T') || 'Z', '') AS claimed_at,
    coalesce(base_url, '') AS base_url,
    coalesce(actor, '') AS actor,
    coalesce(anomaly, '') AS anomaly,
    coalesce(reason, '') AS reason,
    coalesce(CAST(seal_id AS text), '') AS seal_id
FROM report_transitions;

SELECT replace(replace(replace(replace('NOT OK: reports/report_transitions.csv has a row that does not follow from the segments: ' || substr(id || ',' || cluster || ',' || jid || ',' || kind || ',' || reference || ',' || seq || ',' || action || ',' || from_status || ',' || to_status || ',' || from_state || ',' || to_state || ',' || last_seen_at || ',' || observed_at || ',' || server_date || ',' || claimed_at || ',' || base_url || ',' || actor || ',' || anomaly || ',' || reason || ',' || seal_id, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT id, cluster, jid, kind, reference, seq, action, from_status, to_status, from_state, to_state, last_seen_at, observed_at, server_date, claimed_at, base_url, actor, anomaly, reason, seal_id FROM csv_report_transitions EXCEPT SELECT id, cluster, jid, kind, reference, seq, action, from_status, to_status, from_state, to_state, last_seen_at, observed_at, server_date, claimed_at, base_url, actor, anomaly, reason, seal_id FROM right_report_transitions);

SELECT replace(replace(replace(replace('NOT OK: reports/report_transitions.csv lacks a row that follows from the segments: ' || substr(id || ',' || cluster || ',' || jid || ',' || kind || ',' || reference || ',' || seq || ',' || action || ',' || from_status || ',' || to_status || ',' || from_state || ',' || to_state || ',' || last_seen_at || ',' || observed_at || ',' || server_date || ',' || claimed_at || ',' || base_url || ',' || actor || ',' || anomaly || ',' || reason || ',' || seal_id, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT id, cluster, jid, kind, reference, seq, action, from_status, to_status, from_state, to_state, last_seen_at, observed_at, server_date, claimed_at, base_url, actor, anomaly, reason, seal_id FROM right_report_transitions EXCEPT SELECT id, cluster, jid, kind, reference, seq, action, from_status, to_status, from_state, to_state, last_seen_at, observed_at, server_date, claimed_at, base_url, actor, anomaly, reason, seal_id FROM csv_report_transitions);

SELECT 'NOT OK: reports/report_transitions.csv has ' || c.rows || ' rows, but from the segments follow ' || r.rows
FROM (SELECT count(*) AS rows FROM csv_report_transitions) c, (SELECT count(*) AS rows FROM right_report_transitions) r
WHERE c.rows <> r.rows;

CREATE TABLE IF NOT EXISTS csv_report_statuses (cluster, jid, kind, reference, status, entered_after, entered_by, left_after, left_by, seconds_min, seconds_max);
CREATE TABLE right_report_statuses AS SELECT
    coalesce(cluster, '') AS cluster,
    coalesce(jid, '') AS jid,
    coalesce(kind, '') AS kind,
    coalesce(reference, '') AS reference,
    coalesce(status, '') AS status,
    coalesce(replace(entered_after, ' ', 'T') || 'Z', '') AS entered_after,
    coalesce(replace(entered_by, ' ', 'T') || 'Z', '') AS entered_by,
    coalesce(replace(left_after, ' ', 'T') || 'Z', '') AS left_after,
    coalesce(replace(left_by, ' ', 'T') || 'Z', '') AS left_by,
    coalesce(CASE WHEN seconds_min IS NOT NULL THEN printf('%.6f', seconds_min) END, '') AS seconds_min,
    coalesce(CASE WHEN seconds_max IS NOT NULL THEN printf('%.6f', seconds_max) END, '') AS seconds_max
FROM report_statuses;

SELECT replace(replace(replace(replace('NOT OK: reports/report_statuses.csv has a row that does not follow from the segments: ' || substr(cluster || ',' || jid || ',' || kind || ',' || reference || ',' || status || ',' || entered_after || ',' || entered_by || ',' || left_after || ',' || left_by || ',' || seconds_min || ',' || seconds_max, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT cluster, jid, kind, reference, status, entered_after, entered_by, left_after, left_by, seconds_min, seconds_max FROM csv_report_statuses EXCEPT SELECT cluster, jid, kind, reference, status, entered_after, entered_by, left_after, left_by, seconds_min, seconds_max FROM right_report_statuses);

SELECT replace(replace(replace(replace('NOT OK: reports/report_statuses.csv lacks a row that follows from the segments: ' || substr(cluster || ',' || jid || ',' || kind || ',' || reference || ',' || status || ',' || entered_after || ',' || entered_by || ',' || left_after || ',' || left_by || ',' || seconds_min || ',' || seconds_max, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT cluster, jid, kind, reference, status, entered_after, entered_by, left_after, left_by, seconds_min, seconds_max FROM right_report_statuses EXCEPT SELECT cluster, jid, kind, reference, status, entered_after, entered_by, left_after, left_by, seconds_min, seconds_max FROM csv_report_statuses);

SELECT 'NOT OK: reports/report_statuses.csv has ' || c.rows || ' rows, but from the segments follow ' || r.rows
FROM (SELECT count(*) AS rows FROM csv_report_statuses) c, (SELECT count(*) AS rows FROM right_report_statuses) r
WHERE c.rows <> r.rows;

CREATE TABLE IF NOT EXISTS csv_report_monthly (cluster, kind, month, submitted, open, done, failed, lost, attested, withdrawn, done_within_1d, done_within_7d, done_within_14d, met, missed, undecidable, pending, overdue);
CREATE TABLE right_report_monthly AS SELECT
    coalesce(cluster, '') AS cluster,
    coalesce(kind, '') AS kind,
    coalesce(month, '') AS month,
    coalesce(CAST(submitted AS text), '') AS submitted,
    coalesce(CAST(open AS text), '') AS open,
    coalesce(CAST(done AS text), '') AS done,
    coalesce(CAST(failed AS text), '') AS failed,
    coalesce(CAST(lost AS text), '') AS lost,
    coalesce(CAST(attested AS text), '') AS attested,
    coalesce(CAST(withdrawn AS text), '') AS withdrawn,
    coalesce(CAST(done_within_1d AS text), '') AS done_within_1d,
    coalesce(CAST(done_within_7d AS text), '') AS done_within_7d,
    coalesce(CAST(done_within_14d AS text), '') AS done_within_14d,
    coalesce(CAST(met AS text), '') AS met,
    coalesce(CAST(missed AS text), '') AS missed,
    coalesce(CAST(undecidable AS text), '') AS undecidable,
    coalesce(CAST(pending AS text), '') AS pending,
    coalesce(CAST(overdue AS text), '') AS overdue
FROM report_monthly;

SELECT replace(replace(replace(replace('NOT OK: reports/report_monthly.csv has a row that does not follow from the segments: ' || substr(cluster || ',' || kind || ',' || month || ',' || submitted || ',' || open || ',' || done || ',' || failed || ',' || lost || ',' || attested || ',' || withdrawn || ',' || done_within_1d || ',' || done_within_7d || ',' || done_within_14d || ',' || met || ',' || missed || ',' || undecidable || ',' || pending || ',' || overdue, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT cluster, kind, month, submitted, open, done, failed, lost, attested, withdrawn, done_within_1d, done_within_7d, done_within_14d, met, missed, undecidable, pending, overdue FROM csv_report_monthly EXCEPT SELECT cluster, kind, month, submitted, open, done, failed, lost, attested, withdrawn, done_within_1d, done_within_7d, done_within_14d, met, missed, undecidable, pending, overdue FROM right_report_monthly);

SELECT replace(replace(replace(replace('NOT OK: reports/report_monthly.csv lacks a row that follows from the segments: ' || substr(cluster || ',' || kind || ',' || month || ',' || submitted || ',' || open || ',' || done || ',' || failed || ',' || lost || ',' || attested || ',' || withdrawn || ',' || done_within_1d || ',' || done_within_7d || ',' || done_within_14d || ',' || met || ',' || missed || ',' || undecidable || ',' || pending || ',' || overdue, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT cluster, kind, month, submitted, open, done, failed, lost, attested, withdrawn, done_within_1d, done_within_7d, done_within_14d, met, missed, undecidable, pending, overdue FROM right_report_monthly EXCEPT SELECT cluster, kind, month, submitted, open, done, failed, lost, attested, withdrawn, done_within_1d, done_within_7d, done_within_14d, met, missed, undecidable, pending, overdue FROM csv_report_monthly);

SELECT 'NOT OK: reports/report_monthly.csv has ' || c.rows || ' rows, but from the segments follow ' || r.rows
FROM (SELECT count(*) AS rows FROM csv_report_monthly) c, (SELECT count(*) AS rows FROM right_report_monthly) r
WHERE c.rows <> r.rows;

CREATE TABLE IF NOT EXISTS csv_report_deadlines (cluster, jid, kind, reference, state, received_at, received_at_first, amendments, basis, deadline_on, deadline_at, extended_on, done_after, done_by, verdict, days_left);
CREATE TABLE right_report_deadlines AS SELECT
    coalesce(cluster, '') AS cluster,
    coalesce(jid, '') AS jid,
    coalesce(kind, '') AS kind,
    coalesce(reference, '') AS reference,
    coalesce(state, '') AS state,
    coalesce(replace(received_at, ' ', 'T') || 'Z', '') AS received_at,
    coalesce(replace(received_at_first, ' ', 'T') || 'Z', '') AS received_at_first,
    coalesce(CAST(amendments AS text), '') AS amendments,
    coalesce(basis, '') AS basis,
    coalesce(CAST(deadline_on AS text), '') AS deadline_on,
    coalesce(replace(deadline_at, ' ', 'T') || 'Z', '') AS deadline_at,
    coalesce(CAST(extended_on AS text), '') AS extended_on,
    coalesce(replace(done_after, ' ', 'T') || 'Z', '') AS done_after,
    coalesce(replace(done_by, ' ', 'T') || 'Z', '') AS done_by,
    coalesce(verdict, '') AS verdict,
    coalesce(CAST(days_left AS text), '') AS days_left
FROM report_deadlines;

SELECT replace(replace(replace(replace('NOT OK: reports/report_deadlines.csv has a row that does not follow from the segments: ' || substr(cluster || ',' || jid || ',' || kind || ',' || reference || ',' || state || ',' || received_at || ',' || received_at_first || ',' || amendments || ',' || basis || ',' || deadline_on || ',' || deadline_at || ',' || extended_on || ',' || done_after || ',' || done_by || ',' || verdict || ',' || days_left, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT cluster, jid, kind, reference, state, received_at, received_at_first, amendments, basis, deadline_on, deadline_at, extended_on, done_after, done_by, verdict, days_left FROM csv_report_deadlines EXCEPT SELECT cluster, jid, kind, reference, state, received_at, received_at_first, amendments, basis, deadline_on, deadline_at, extended_on, done_after, done_by, verdict, days_left FROM right_report_deadlines);

SELECT replace(replace(replace(replace('NOT OK: reports/report_deadlines.csv lacks a row that follows from the segments: ' || substr(cluster || ',' || jid || ',' || kind || ',' || reference || ',' || state || ',' || received_at || ',' || received_at_first || ',' || amendments || ',' || basis || ',' || deadline_on || ',' || deadline_at || ',' || extended_on || ',' || done_after || ',' || done_by || ',' || verdict || ',' || days_left, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT cluster, jid, kind, reference, state, received_at, received_at_first, amendments, basis, deadline_on, deadline_at, extended_on, done_after, done_by, verdict, days_left FROM right_report_deadlines EXCEPT SELECT cluster, jid, kind, reference, state, received_at, received_at_first, amendments, basis, deadline_on, deadline_at, extended_on, done_after, done_by, verdict, days_left FROM csv_report_deadlines);

SELECT 'NOT OK: reports/report_deadlines.csv has ' || c.rows || ' rows, but from the segments follow ' || r.rows
FROM (SELECT count(*) AS rows FROM csv_report_deadlines) c, (SELECT count(*) AS rows FROM right_report_deadlines) r
WHERE c.rows <> r.rows;

CREATE TABLE IF NOT EXISTS csv_report_requests (reference, jobs, open, done, not_done, received_at, deadline_on, done_after, done_by, verdict);
CREATE TABLE right_report_requests AS SELECT
    coalesce(reference, '') AS reference,
    coalesce(CAST(jobs AS text), '') AS jobs,
    coalesce(CAST(open AS text), '') AS open,
    coalesce(CAST(done AS text), '') AS done,
    coalesce(CAST(not_done AS text), '') AS not_done,
    coalesce(replace(received_at, ' ', 'T') || 'Z', '') AS received_at,
    coalesce(CAST(deadline_on AS text), '') AS deadline_on,
    coalesce(replace(done_after, ' ', 'T') || 'Z', '') AS done_after,
    coalesce(replace(done_by, ' ', 'T') || 'Z', '') AS done_by,
    coalesce(verdict, '') AS verdict
FROM report_requests;

SELECT replace(replace(replace(replace('NOT OK: reports/report_requests.csv has a row that does not follow from the segments: ' || substr(reference || ',' || jobs || ',' || open || ',' || done || ',' || not_done || ',' || received_at || ',' || deadline_on || ',' || done_after || ',' || done_by || ',' || verdict, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT reference, jobs, open, done, not_done, received_at, deadline_on, done_after, done_by, verdict FROM csv_report_requests EXCEPT SELECT reference, jobs, open, done, not_done, received_at, deadline_on, done_after, done_by, verdict FROM right_report_requests);

SELECT replace(replace(replace(replace('NOT OK: reports/report_requests.csv lacks a row that follows from the segments: ' || substr(reference || ',' || jobs || ',' || open || ',' || done || ',' || not_done || ',' || received_at || ',' || deadline_on || ',' || done_after || ',' || done_by || ',' || verdict, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT reference, jobs, open, done, not_done, received_at, deadline_on, done_after, done_by, verdict FROM right_report_requests EXCEPT SELECT reference, jobs, open, done, not_done, received_at, deadline_on, done_after, done_by, verdict FROM csv_report_requests);

SELECT 'NOT OK: reports/report_requests.csv has ' || c.rows || ' rows, but from the segments follow ' || r.rows
FROM (SELECT count(*) AS rows FROM csv_report_requests) c, (SELECT count(*) AS rows FROM right_report_requests) r
WHERE c.rows <> r.rows;

CREATE TABLE IF NOT EXISTS csv_report_anomalies (id, cluster, jid, kind, reference, seq, action, from_status, to_status, from_state, to_state, last_seen_at, observed_at, server_date, claimed_at, base_url, actor, anomaly, reason, seal_id);
CREATE TABLE right_report_anomalies AS SELECT
    coalesce(CAST(id AS text), '') AS id,
    coalesce(cluster, '') AS cluster,
    coalesce(jid, '') AS jid,
    coalesce(kind, '') AS kind,
    coalesce(reference, '') AS reference,
    coalesce(CAST(seq AS text), '') AS seq,
    coalesce(action, '') AS action,
    coalesce(from_status, '') AS from_status,
    coalesce(to_status, '') AS to_status,
    coalesce(from_state, '') AS from_state,
    coalesce(to_state, '') AS to_state,
    coalesce(replace(last_seen_at, ' ', 'T') || 'Z', '') AS last_seen_at,
    coalesce(replace(observed_at, ' ', 'T') || 'Z', '') AS observed_at,
    coalesce(replace(server_date, ' ', 'T') || 'Z', '') AS server_date,
    coalesce(replace(claimed_at, ' ', 'T') || 'Z', '') AS claimed_at,
    coalesce(base_url, '') AS base_url,
    coalesce(actor, '') AS actor,
    coalesce(anomaly, '') AS anomaly,
    coalesce(reason, '') AS reason,
    coalesce(CAST(seal_id AS text), '') AS seal_id
FROM report_anomalies;

SELECT replace(replace(replace(replace('NOT OK: reports/report_anomalies.csv has a row that does not follow from the segments: ' || substr(id || ',' || cluster || ',' || jid || ',' || kind || ',' || reference || ',' || seq || ',' || action || ',' || from_status || ',' || to_status || ',' || from_state || ',' || to_state || ',' || last_seen_at || ',' || observed_at || ',' || server_date || ',' || claimed_at || ',' || base_url || ',' || actor || ',' || anomaly || ',' || reason || ',' || seal_id, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT id, cluster, jid, kind, reference, seq, action, from_status, to_status, from_state, to_state, last_seen_at, observed_at, server_date, claimed_at, base_url, actor, anomaly, reason, seal_id FROM csv_report_anomalies EXCEPT SELECT id, cluster, jid, kind, reference, seq, action, from_status, to_status, from_state, to_state, last_seen_at, observed_at, server_date, claimed_at, base_url, actor, anomaly, reason, seal_id FROM right_report_anomalies);

SELECT replace(replace(replace(replace('NOT OK: reports/report_anomalies.csv lacks a row that follows from the segments: ' || substr(id || ',' || cluster || ',' || jid || ',' || kind || ',' || reference || ',' || seq || ',' || action || ',' || from_status || ',' || to_status || ',' || from_state || ',' || to_state || ',' || last_seen_at || ',' || observed_at || ',' || server_date || ',' || claimed_at || ',' || base_url || ',' || actor || ',' || anomaly || ',' || reason || ',' || seal_id, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT id, cluster, jid, kind, reference, seq, action, from_status, to_status, from_state, to_state, last_seen_at, observed_at, server_date, claimed_at, base_url, actor, anomaly, reason, seal_id FROM right_report_anomalies EXCEPT SELECT id, cluster, jid, kind, reference, seq, action, from_status, to_status, from_state, to_state, last_seen_at, observed_at, server_date, claimed_at, base_url, actor, anomaly, reason, seal_id FROM csv_report_anomalies);

SELECT 'NOT OK: reports/report_anomalies.csv has ' || c.rows || ' rows, but from the segments follow ' || r.rows
FROM (SELECT count(*) AS rows FROM csv_report_anomalies) c, (SELECT count(*) AS rows FROM right_report_anomalies) r
WHERE c.rows <> r.rows;

CREATE TABLE IF NOT EXISTS csv_report_gaps (cluster, began_at, ended_at, is_open, cause, detail, seconds, open_jobs);
CREATE TABLE right_report_gaps AS SELECT
    coalesce(cluster, '') AS cluster,
    coalesce(replace(began_at, ' ', 'T') || 'Z', '') AS began_at,
    coalesce(replace(ended_at, ' ', 'T') || 'Z', '') AS ended_at,
    coalesce(CAST(is_open AS text), '') AS is_open,
    coalesce(cause, '') AS cause,
    coalesce(detail, '') AS detail,
    coalesce(CASE WHEN seconds IS NOT NULL THEN printf('%.6f', seconds) END, '') AS seconds,
    coalesce(CAST(open_jobs AS text), '') AS open_jobs
FROM report_gaps;

SELECT replace(replace(replace(replace('NOT OK: reports/report_gaps.csv has a row that does not follow from the segments: ' || substr(cluster || ',' || began_at || ',' || ended_at || ',' || is_open || ',' || cause || ',' || detail || ',' || seconds || ',' || open_jobs, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT cluster, began_at, ended_at, is_open, cause, detail, seconds, open_jobs FROM csv_report_gaps EXCEPT SELECT cluster, began_at, ended_at, is_open, cause, detail, seconds, open_jobs FROM right_report_gaps);

SELECT replace(replace(replace(replace('NOT OK: reports/report_gaps.csv lacks a row that follows from the segments: ' || substr(cluster || ',' || began_at || ',' || ended_at || ',' || is_open || ',' || cause || ',' || detail || ',' || seconds || ',' || open_jobs, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT cluster, began_at, ended_at, is_open, cause, detail, seconds, open_jobs FROM right_report_gaps EXCEPT SELECT cluster, began_at, ended_at, is_open, cause, detail, seconds, open_jobs FROM csv_report_gaps);

SELECT 'NOT OK: reports/report_gaps.csv has ' || c.rows || ' rows, but from the segments follow ' || r.rows
FROM (SELECT count(*) AS rows FROM csv_report_gaps) c, (SELECT count(*) AS rows FROM right_report_gaps) r
WHERE c.rows <> r.rows;

CREATE TABLE IF NOT EXISTS csv_report_coverage (cluster, jid, covered_share, longest_unobserved_seconds);
CREATE TABLE right_report_coverage AS SELECT
    coalesce(cluster, '') AS cluster,
    coalesce(jid, '') AS jid,
    coalesce(CASE WHEN covered_share IS NOT NULL THEN printf('%.6f', covered_share) END, '') AS covered_share,
    coalesce(CASE WHEN longest_unobserved_seconds IS NOT NULL THEN printf('%.6f', longest_unobserved_seconds) END, '') AS longest_unobserved_seconds
FROM report_coverage;

SELECT replace(replace(replace(replace('NOT OK: reports/report_coverage.csv has a row that does not follow from the segments: ' || substr(cluster || ',' || jid || ',' || covered_share || ',' || longest_unobserved_seconds, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT cluster, jid, covered_share, longest_unobserved_seconds FROM csv_report_coverage EXCEPT SELECT cluster, jid, covered_share, longest_unobserved_seconds FROM right_report_coverage);

SELECT replace(replace(replace(replace('NOT OK: reports/report_coverage.csv lacks a row that follows from the segments: ' || substr(cluster || ',' || jid || ',' || covered_share || ',' || longest_unobserved_seconds, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT cluster, jid, covered_share, longest_unobserved_seconds FROM right_report_coverage EXCEPT SELECT cluster, jid, covered_share, longest_unobserved_seconds FROM csv_report_coverage);

SELECT 'NOT OK: reports/report_coverage.csv has ' || c.rows || ' rows, but from the segments follow ' || r.rows
FROM (SELECT count(*) AS rows FROM csv_report_coverage) c, (SELECT count(*) AS rows FROM right_report_coverage) r
WHERE c.rows <> r.rows;

CREATE TABLE IF NOT EXISTS csv_report_clusters (cluster, open, polls_behind, answered_at, paused_until, pause_cause, next_deadline_on);
CREATE TABLE right_report_clusters AS SELECT
    coalesce(cluster, '') AS cluster,
    coalesce(CAST(open AS text), '') AS open,
    coalesce(CAST(polls_behind AS text), '') AS polls_behind,
    coalesce(replace(answered_at, ' ', 'T') || 'Z', '') AS answered_at,
    coalesce(CAST(paused_until AS text), '') AS paused_until,
    coalesce(pause_cause, '') AS pause_cause,
    coalesce(CAST(next_deadline_on AS text), '') AS next_deadline_on
FROM report_clusters;

SELECT replace(replace(replace(replace('NOT OK: reports/report_clusters.csv has a row that does not follow from the segments: ' || substr(cluster || ',' || open || ',' || polls_behind || ',' || answered_at || ',' || paused_until || ',' || pause_cause || ',' || next_deadline_on, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT cluster, open, polls_behind, answered_at, paused_until, pause_cause, next_deadline_on FROM csv_report_clusters EXCEPT SELECT cluster, open, polls_behind, answered_at, paused_until, pause_cause, next_deadline_on FROM right_report_clusters);

SELECT replace(replace(replace(replace('NOT OK: reports/report_clusters.csv lacks a row that follows from the segments: ' || substr(cluster || ',' || open || ',' || polls_behind || ',' || answered_at || ',' || paused_until || ',' || pause_cause || ',' || next_deadline_on, 1, 300), char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM (SELECT cluster, open, polls_behind, answered_at, paused_until, pause_cause, next_deadline_on FROM right_report_clusters EXCEPT SELECT cluster, open, polls_behind, answered_at, paused_until, pause_cause, next_deadline_on FROM csv_report_clusters);

SELECT 'NOT OK: reports/report_clusters.csv has ' || c.rows || ' rows, but from the segments follow ' || r.rows
FROM (SELECT count(*) AS rows FROM csv_report_clusters) c, (SELECT count(*) AS rows FROM right_report_clusters) r
WHERE c.rows <> r.rows;

SELECT replace(replace(replace(replace('NOT OK: reports/' || substr(name, 5) || '.csv is no report of tracker''s', char(10), '?'), char(13), '?'), char(27), '?'), char(155), '?') FROM sqlite_schema
WHERE name LIKE 'csv_report_%' AND 'right' || substr(name, 4) NOT IN (SELECT name FROM sqlite_schema);

SELECT 'checked ' || (SELECT count(*) FROM jobs) || ' jobs' || ', ' || (SELECT count(*) FROM transitions) || ' transitions' || ', ' || (SELECT count(*) FROM gaps) || ' gaps' || ', 11 reports';
