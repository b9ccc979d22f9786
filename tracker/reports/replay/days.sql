{% from 'macros.sql' import day_of %}
{# The days, in UTC, from which deadlines are counted, and those to which one was moved. #}
SELECT DISTINCT
    CAST({{ day_of("coalesce(t.received_at, t.submitted_at, CASE t.action WHEN 'registered' THEN t.observed_at ELSE (
        SELECT r.observed_at FROM transitions r WHERE r.job_id = t.job_id AND r.seq = 0
    ) END)") }} AS text) AS day,
    CAST(t.extended_on AS text) AS extended_on
FROM transitions t
WHERE t.action IN ('registered', 'amended')
