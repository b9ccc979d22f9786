{% from 'macros.sql' import month, seconds, verdict %}
{# An unfinished job, and a done one whose submission is unknown, counts as longer than any: NULL comes last. #}
SELECT
    r.cluster,
    r.kind,
    r.month,
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
    max(CASE WHEN r.place = (r.many + 1) / 2 THEN r.seconds END) AS median_seconds,
    max(CASE WHEN r.place = (95 * r.many + 99) / 100 THEN r.seconds END) AS p95_seconds,
    count(*) FILTER (WHERE r.verdict = 'met') AS met,
    count(*) FILTER (WHERE r.verdict = 'missed') AS missed,
    count(*) FILTER (WHERE r.verdict = 'undecidable') AS undecidable,
    count(*) FILTER (WHERE r.verdict = 'pending') AS pending,
    count(*) FILTER (WHERE r.verdict = 'overdue') AS overdue
FROM (
    SELECT
        a.*,
        CASE WHEN a.counts = 1 THEN
            row_number() OVER (PARTITION BY a.cluster, a.kind, a.month, a.counts ORDER BY a.seconds IS NULL, a.seconds)
        END AS place,
        count(*) OVER (PARTITION BY a.cluster, a.kind, a.month, a.counts) AS many
    FROM (
        SELECT
            j.cluster, j.kind, j.state,
            {{ month('coalesce(j.submitted_at, j.registered_at)') }} AS month,
            CASE WHEN j.state = 'withdrawn' THEN 0 ELSE 1 END AS counts,
            CASE WHEN j.state = 'done' THEN {{ seconds('j.submitted_at', 'j.ended_by') }} END AS seconds,
            {{ verdict('j') }} AS verdict
        FROM jobs j
    ) a
) r
GROUP BY r.cluster, r.kind, r.month
