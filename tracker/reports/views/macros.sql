{# The differences of the two databases, and what several files share. Instants are exact to the microsecond: SQLite's
   date functions count milliseconds, so the whole seconds and the six digits are handled separately. #}
{% macro now() -%}
{% if mode != 'now' %}(SELECT c.at FROM clock c)
{%- elif sqlite %}strftime('%Y-%m-%d %H:%M:%f000', 'now')
{%- else %}statement_timestamp()
{%- endif %}
{%- endmacro %}

{# Whether a row was known at the time of the report, or is closed by its checkpoint. #}
{% macro known(row, time, last) -%}
{% if mode == 'time' %}{{ row }}.{{ time }} <= (SELECT c.at FROM clock c)
{%- elif mode == 'checkpoint' %}{{ row }}.id <= (SELECT c.{{ last }} FROM clock c)
{%- else %}1 = 1
{%- endif %}
{%- endmacro %}

{# The rows of seals from the newest base on. A base seals all rows again after jobs were removed, so only its segments and
   later ones exist; in a pack and as of an earlier time, the relation holds no others. #}
{% macro from_base(s) -%}
{{ s }}.id >= (SELECT coalesce(min(g.seal_id), 0) FROM segments g)
{%- endmacro %}

{# From a to b: length is in whole microseconds, seconds is a double; passed is 0 if b is before a, since a submission can
   be declared later than what came after it. NULL if a or b is NULL. PostgreSQL's date_part() is several times faster
   than EXTRACT, and rounded to the microsecond as exact. #}
{% macro microseconds(t) -%}
{% if sqlite %}(unixepoch(substr({{ t }}, 1, 19)) * 1000000 + substr({{ t }}, 21)){% else %}CAST(round(date_part('epoch', {{ t }}) * 1000000) AS bigint){% endif %}
{%- endmacro %}

{% macro length(a, b) -%}
{% if sqlite -%}
({{ microseconds(b) }} - {{ microseconds(a) }})
{%- else -%}
CAST(round(date_part('epoch', {{ b }} - {{ a }}) * 1000000) AS bigint)
{%- endif %}
{%- endmacro %}

{% macro seconds(a, b) -%}
{% if sqlite %}({{ length(a, b) }} / 1000000.0){% else %}(round(date_part('epoch', {{ b }} - {{ a }}) * 1000000) / 1000000){% endif %}
{%- endmacro %}

{% macro passed(a, b) -%}
{{ seconds(a, greatest(b, a)) }}
{%- endmacro %}

{% macro plus_seconds(t, seconds) -%}
{% if sqlite -%}
(strftime('%Y-%m-%d %H:%M:%S', substr({{ t }}, 1, 19), '{{ seconds }} seconds') || substr({{ t }}, 20))
{%- else -%}
({{ t }} + interval '{{ seconds }} seconds')
{%- endif %}
{%- endmacro %}

{# Days from one date to another. #}
{% macro days(a, b) -%}
{% if sqlite %}CAST(julianday({{ b }}) - julianday({{ a }}) AS INTEGER){% else %}({{ b }} - {{ a }}){% endif %}
{%- endmacro %}

{# Today's date in the newest legal time zone of each cluster that has one: from the UTC offsets that a daemon has left in
   `clusters`, since SQLite has no time zones; as of a time, from `zone`. #}
{% macro today() -%}
{% if mode != 'now' -%}
SELECT s.cluster, z.day
    FROM (SELECT cluster, legal_timezone, row_number() OVER (PARTITION BY cluster ORDER BY id DESC) AS place FROM sources) s
    JOIN zone z ON z.timezone = s.legal_timezone AND z.begins_at <= {{ now() }} AND z.ends_at > {{ now() }}
    WHERE s.place = 1
{%- elif sqlite -%}
SELECT c.cluster, date({{ now() }}, json_extract(o.value, '$[2]') || ' seconds') AS day
    FROM clusters c JOIN json_each(c.utc_offsets) o
    WHERE json_extract(o.value, '$[0]') <= {{ now() }} AND json_extract(o.value, '$[1]') > {{ now() }}
{%- else -%}
SELECT c.cluster, CAST({{ now() }} AT TIME ZONE 'UTC' + CAST(o.value->>2 || ' seconds' AS interval) AS date) AS day
    FROM clusters c CROSS JOIN json_array_elements(CAST(c.utc_offsets AS json)) o(value)
    WHERE CAST(o.value->>0 || '+00' AS timestamptz) <= {{ now() }} AND CAST(o.value->>1 || '+00' AS timestamptz) > {{ now() }}
{%- endif %}
{%- endmacro %}

{% macro greatest(a, b) -%}
{{ 'max' if sqlite else 'greatest' }}({{ a }}, {{ b }})
{%- endmacro %}

{% macro least(a, b) -%}
{{ 'min' if sqlite else 'least' }}({{ a }}, {{ b }})
{%- endmacro %}

{# NULL of a type, which PostgreSQL requires. #}
{% macro null(type) -%}
{% if sqlite %}NULL{% else %}CAST(NULL AS {{ type }}){% endif %}
{%- endmacro %}

{# Whether two values are not the same, where NULL is the same as NULL. #}
{% macro differ(a, b) -%}
{{ a }} {{ 'IS NOT' if sqlite else 'IS DISTINCT FROM' }} {{ b }}
{%- endmacro %}

{# The month of an instant, in UTC, since SQLite knows no time zone, and its name, YYYY-MM; its day, in UTC; a day some days
   later; and the same day some months later, or that month's last. #}
{% macro month(t) -%}
{% if sqlite %}substr({{ t }}, 1, 7){% else %}date_trunc('month', {{ t }} AT TIME ZONE 'UTC'){% endif %}
{%- endmacro %}

{% macro month_name(month) -%}
{% if sqlite %}{{ month }}{% else %}to_char({{ month }}, 'YYYY-MM'){% endif %}
{%- endmacro %}

{% macro day_of(t) -%}
{% if sqlite %}substr({{ t }}, 1, 10){% else %}CAST({{ t }} AT TIME ZONE 'UTC' AS date){% endif %}
{%- endmacro %}

{% macro later(day, days) -%}
{% if sqlite %}date({{ day }}, '{{ days }} days'){% else %}({{ day }} + {{ days }}){% endif %}
{%- endmacro %}

{% macro months_later(day, months) -%}
{% if sqlite -%}
min(date({{ day }}, '{{ months }} months'), date({{ day }}, 'start of month', '{{ months + 1 }} months', '-1 day'))
{%- else -%}
CAST({{ day }} + interval '{{ months }} months' AS date)
{%- endif %}
{%- endmacro %}

{# A lower bound: when the last request that saw another status was sent; if there was none, the submission, but not
   later than the upper bound. #}
{% macro begin(seen, submitted, by) -%}
CASE WHEN {{ seen }} IS NULL AND {{ submitted }} > {{ by }} THEN {{ by }} ELSE coalesce({{ seen }}, {{ submitted }}) END
{%- endmacro %}

{# The verdict on a row of jobs. While Elevate says not_found, the job was last seen not done where not_found began. #}
{% macro verdict(j) -%}
CASE
        WHEN {{ j }}.state IN ('attested', 'withdrawn') THEN {{ j }}.state
        WHEN {{ j }}.state = 'done' AND {{ j }}.ended_by <= {{ j }}.deadline_at THEN 'met'
        WHEN {{ j }}.state = 'done' AND {{ begin(j ~ '.ended_after', j ~ '.submitted_at', j ~ '.ended_by') }} >= {{ j }}.deadline_at THEN 'missed'
        WHEN {{ j }}.state IN ('done', 'lost') THEN 'undecidable'
        WHEN {{ j }}.deadline_at IS NULL OR {{ j }}.deadline_at > {{ now() }} THEN 'pending'
        WHEN {{ j }}.state = 'failed' THEN 'overdue'
        WHEN CASE {{ j }}.status WHEN 'not_found' THEN {{ j }}.status_after ELSE {{ j }}.seen_at END >= {{ j }}.deadline_at THEN 'overdue'
        ELSE 'undecidable'
    END
{%- endmacro %}

{# All gaps. Those that are open have no end and last until now. Each column has its name in both parts, since a restored
   dump gives it one. #}
{% macro all_gaps() -%}
SELECT id, cluster, began_at, ended_at, ended_at AS until_at, 0 AS is_open, cause, detail FROM gaps
    UNION ALL
    SELECT NULL AS id, cluster, gap_began_at, NULL AS ended_at, {{ now() }} AS until_at, 1 AS is_open, gap_cause, gap_detail
    FROM clusters WHERE gap_began_at IS NOT NULL
{%- endmacro %}
