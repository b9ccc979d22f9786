{% from 'macros.sql' import known, null %}
{# Pauses and the time of the last answer are in no row: NULL. A gap was open if it began by then and ended later, or has
   not ended. Its detail is NULL, since an operator may have added to it later. A gap not_running is left out: a daemon
   that starts records it, and no row says when that was. As of a checkpoint no gap is open. #}
WITH names AS (
    SELECT s.cluster FROM {{ table }}sources s WHERE {{ known('s', 'recorded_at', 'source_id') }}
    UNION
    SELECT g.cluster FROM {{ table }}gaps g WHERE {{ known('g', 'began_at', 'gap_id') }}
{% if mode == 'time' %}
    UNION
    SELECT c.cluster FROM {{ table }}clusters c WHERE {{ known('c', 'gap_began_at', '') }}
),
open_gaps AS (
    SELECT
        o.cluster, o.began_at, o.cause, row_number() OVER (PARTITION BY o.cluster ORDER BY o.began_at, o.cause) AS place
    FROM (
        SELECT g.cluster, g.began_at, g.cause FROM {{ table }}gaps g
        WHERE {{ known('g', 'began_at', '') }} AND NOT ({{ known('g', 'ended_at', '') }})
        UNION ALL
        SELECT c.cluster, c.gap_began_at, c.gap_cause FROM {{ table }}clusters c
        WHERE {{ known('c', 'gap_began_at', '') }}
    ) o
    WHERE o.cause <> 'not_running'
{% else %}
),
open_gaps AS (
    SELECT {{ null('text') }} AS cluster, {{ null('timestamptz') }} AS began_at, {{ null('text') }} AS cause, 1 AS place
{% endif %}
)
SELECT
    n.cluster, {{ null('timestamptz') }} AS answered_at, {{ null('timestamptz') }} AS paused_until,
    {{ null('text') }} AS pause_cause, g.began_at AS gap_began_at, g.cause AS gap_cause, {{ null('text') }} AS gap_detail
FROM names n
LEFT JOIN open_gaps g ON g.cluster = n.cluster AND g.place = 1
