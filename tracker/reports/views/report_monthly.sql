{% from 'macros.sql' import month, month_name, passed, verdict %}
{# Counts, since quantiles cannot be added up; seconds are the upper bound of the time from submission to done. #}
SELECT
    r.cluster,
    r.kind,
    {{ month_name('r.month') }} AS month,
    count(*) AS submitted,
{% for state in ('open', 'done', 'failed', 'lost', 'attested', 'withdrawn') %}
    count(*) FILTER (WHERE r.state = '{{ state }}') AS {{ state }},
{% endfor %}
{% for days in (1, 7, 14) %}
    count(*) FILTER (WHERE r.seconds <= {{ days * 86400 }}) AS done_within_{{ days }}d,
{% endfor %}
{% for verdict in ('met', 'missed', 'undecidable', 'pending', 'overdue') %}
    count(*) FILTER (WHERE r.verdict = '{{ verdict }}') AS {{ verdict }}{{ "," if not loop.last }}
{% endfor %}
FROM (
    SELECT
        j.cluster, j.kind, {{ month('coalesce(j.submitted_at, j.registered_at)') }} AS month, j.state,
        CASE WHEN j.state = 'done' THEN {{ passed('j.submitted_at', 'j.ended_by') }} END AS seconds,
        {{ verdict('j') }} AS verdict
    FROM jobs j
) r
GROUP BY r.month, r.kind, r.cluster
