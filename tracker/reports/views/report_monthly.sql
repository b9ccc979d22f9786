{% from 'macros.sql' import month, month_name, seconds, verdict %}
{# An unfinished job, and a done one whose submission is unknown, counts as longer than any: of the jobs that count, the
   k-th smallest is the k-th smallest of those with a duration, and not reached beyond them. So only those are sorted. #}
WITH counted AS (
    SELECT
        r.cluster, r.kind, r.month,
        count(*) AS submitted,
        count(*) FILTER (WHERE r.state = 'open') AS open,
        count(*) FILTER (WHERE r.state = 'done') AS done,
        count(*) FILTER (WHERE r.state = 'failed') AS failed,
        count(*) FILTER (WHERE r.state = 'lost') AS lost,
        count(*) FILTER (WHERE r.state = 'attested') AS attested,
        count(*) FILTER (WHERE r.state = 'withdrawn') AS withdrawn,
        count(*) FILTER (WHERE r.verdict = 'met') AS met,
        count(*) FILTER (WHERE r.verdict = 'missed') AS missed,
        count(*) FILTER (WHERE r.verdict = 'undecidable') AS undecidable,
        count(*) FILTER (WHERE r.verdict = 'pending') AS pending,
        count(*) FILTER (WHERE r.verdict = 'overdue') AS overdue
    FROM (
        SELECT
            j.cluster, j.kind, {{ month('coalesce(j.submitted_at, j.registered_at)') }} AS month, j.state,
            {{ verdict('j') }} AS verdict
        FROM jobs j
    ) r
    GROUP BY r.month, r.kind, r.cluster
),
ranked AS (
    SELECT
        d.cluster, d.kind, d.month, d.seconds,
        row_number() OVER (PARTITION BY d.cluster, d.kind, d.month ORDER BY d.seconds) AS place
    FROM (
        SELECT
            j.cluster, j.kind, {{ month('j.submitted_at') }} AS month,
            {{ seconds('j.submitted_at', 'j.ended_by') }} AS seconds
        FROM jobs j
        WHERE j.state = 'done' AND j.submitted_at IS NOT NULL
    ) d
)
SELECT
    c.cluster, c.kind, {{ month_name('c.month') }} AS month, c.submitted, c.open, c.done, c.failed, c.lost, c.attested, c.withdrawn,
    coalesce(q.done_within_1d, 0) AS done_within_1d,
    coalesce(q.done_within_7d, 0) AS done_within_7d,
    coalesce(q.done_within_14d, 0) AS done_within_14d,
    q.median_seconds, q.p95_seconds, c.met, c.missed, c.undecidable, c.pending, c.overdue
FROM counted c
LEFT JOIN (
    SELECT
        r.cluster, r.kind, r.month,
        max(r.place) FILTER (WHERE r.seconds <= 86400) AS done_within_1d,
        max(r.place) FILTER (WHERE r.seconds <= 604800) AS done_within_7d,
        max(r.place) FILTER (WHERE r.seconds <= 1209600) AS done_within_14d,
        max(r.seconds) FILTER (WHERE r.place = (n.submitted - n.withdrawn + 1) / 2) AS median_seconds,
        max(r.seconds) FILTER (WHERE r.place = (95 * (n.submitted - n.withdrawn) + 99) / 100) AS p95_seconds
    FROM ranked r
    JOIN counted n ON n.cluster = r.cluster AND n.kind = r.kind AND n.month = r.month
    GROUP BY r.cluster, r.kind, r.month
) q ON q.cluster = c.cluster AND q.kind = c.kind AND q.month = c.month
