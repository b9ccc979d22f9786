{% from 'macros.sql' import month, month_name, passed, point, verdict %}
{# An unfinished job, and a done one whose submission is unknown, counts as longer than any: of the jobs that count, the
   k-th smallest is the k-th smallest of those with a duration, and not reached beyond them. A month's durations are
   sorted into one array, and the k-th is taken from it: a window function takes twice as long. SQLite's arrays are JSON,
   which keeps the order of the rows that they are made of, and integers exactly: so they are of microseconds. #}
{% set duration %}
CASE WHEN j.state = 'done' THEN {% if sqlite %}max(0, {{ point('j.ended_by') }} - {{ point('j.submitted_at') }}){% else %}{{ passed('j.submitted_at', 'j.ended_by') }}{% endif %} END
{%- endset %}
{% set second = 1000000 if sqlite else 1 %}
{% macro within(days) -%}
count(*) FILTER (WHERE r.duration <= {{ days * 86400 * second }})
{%- endmacro %}
{# Of the durations in order, the one at this place; the first has number 1. #}
{% macro at(place) -%}
{% if sqlite -%}
CASE WHEN c.counting > 0 THEN json_extract(c.durations, '$[' || ({{ place }} - 1) || ']') / 1000000.0 END
{%- else -%}
c.durations[{{ place }}]
{%- endif %}
{%- endmacro %}
SELECT
    c.cluster, c.kind, {{ month_name('c.month') }} AS month, c.submitted, c.open, c.done, c.failed, c.lost, c.attested, c.withdrawn,
    c.done_within_1d, c.done_within_7d, c.done_within_14d,
    {{ at('(c.counting + 1) / 2') }} AS median_seconds,
    {{ at('(95 * c.counting + 99) / 100') }} AS p95_seconds,
    c.met, c.missed, c.undecidable, c.pending, c.overdue
FROM (
    SELECT
        r.cluster, r.kind, r.month,
        count(*) AS submitted,
        count(*) FILTER (WHERE r.state <> 'withdrawn') AS counting,
        count(*) FILTER (WHERE r.state = 'open') AS open,
        count(*) FILTER (WHERE r.state = 'done') AS done,
        count(*) FILTER (WHERE r.state = 'failed') AS failed,
        count(*) FILTER (WHERE r.state = 'lost') AS lost,
        count(*) FILTER (WHERE r.state = 'attested') AS attested,
        count(*) FILTER (WHERE r.state = 'withdrawn') AS withdrawn,
        {{ within(1) }} AS done_within_1d,
        {{ within(7) }} AS done_within_7d,
        {{ within(14) }} AS done_within_14d,
        {{ 'json_group_array(r.duration)' if sqlite else 'array_agg(r.duration ORDER BY r.duration)' }} FILTER (WHERE r.duration IS NOT NULL) AS durations,
        count(*) FILTER (WHERE r.verdict = 'met') AS met,
        count(*) FILTER (WHERE r.verdict = 'missed') AS missed,
        count(*) FILTER (WHERE r.verdict = 'undecidable') AS undecidable,
        count(*) FILTER (WHERE r.verdict = 'pending') AS pending,
        count(*) FILTER (WHERE r.verdict = 'overdue') AS overdue
    FROM (
        SELECT
            j.cluster, j.kind, {{ month('coalesce(j.submitted_at, j.registered_at)') }} AS month, j.state,
            {{ duration }} AS duration,
            {{ verdict('j') }} AS verdict
        FROM jobs j
        ORDER BY month, j.kind, j.cluster{{ ", duration" if sqlite }}

    ) r
    GROUP BY r.month, r.kind, r.cluster
) c
