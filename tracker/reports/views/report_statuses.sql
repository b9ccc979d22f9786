{% from 'macros.sql' import begin, greatest, now, seconds %}
{% macro is_entry(t) -%}
{{ t }}.to_status IS NOT NULL AND ({{ t }}.from_status IS NULL OR {{ t }}.from_status <> {{ t }}.to_status)
{%- endmacro %}
{# A status is left when the next status is entered. That is nearly always the next transition, which is joined. Where that
   is an operator's action on a job that was polled again later, or the row that shows it overdue, the next entry is joined,
   too. A window or a look-up takes longer, and PostgreSQL cannot do it with several workers. #}
WITH passed_over AS (
    SELECT e.job_id, e.seq, n.last_seen_at, n.observed_at
    FROM (
        SELECT job_id, seq FROM transitions WHERE action = 'amended'
        UNION ALL
        SELECT job_id, seq FROM transitions WHERE from_state <> 'open' AND from_state <> to_state
        UNION ALL
        SELECT job_id, seq FROM transitions WHERE action = 'observed' AND from_status = to_status
    ) p
    JOIN transitions n ON n.job_id = p.job_id AND n.seq = p.seq + 1 AND {{ is_entry('n') }}
    JOIN transitions e ON e.job_id = p.job_id AND e.seq < p.seq AND {{ is_entry('e') }}
    WHERE NOT EXISTS (
        SELECT 1 FROM transitions b WHERE b.job_id = p.job_id AND b.seq > e.seq AND b.seq < p.seq AND {{ is_entry('b') }}
    )
)
SELECT
    j.cluster,
    j.jid,
    j.kind,
    j.reference,
    s.status,
    {{ begin('s.last_seen_at', 'j.submitted_at', 's.observed_at') }} AS entered_after,
    s.observed_at AS entered_by,
    s.left_after,
    s.left_by,
    coalesce({{ greatest('0.0', seconds('s.observed_at', 'CASE WHEN s.left_by IS NULL THEN j.seen_at ELSE s.left_after END')) }}, 0.0) AS seconds_min,
    {{ seconds(begin('s.last_seen_at', 'j.submitted_at', 's.observed_at'), "CASE WHEN s.left_by IS NULL AND j.state = 'open' THEN " ~ now() ~ ' ELSE s.left_by END') }} AS seconds_max
FROM (
    SELECT
        t.job_id, t.to_status AS status, t.last_seen_at, t.observed_at,
        coalesce(n.last_seen_at, p.last_seen_at) AS left_after, coalesce(n.observed_at, p.observed_at) AS left_by
    FROM transitions t
    LEFT JOIN transitions n ON n.job_id = t.job_id AND n.seq = t.seq + 1 AND {{ is_entry('n') }}
    LEFT JOIN passed_over p ON p.job_id = t.job_id AND p.seq = t.seq
    WHERE {{ is_entry('t') }}
) s
CROSS JOIN jobs j WHERE j.id = s.job_id
