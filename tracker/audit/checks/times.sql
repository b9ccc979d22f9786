{% from 'macros.sql' import from_base, now, plus_seconds %}
{# A row is sealed soon after its own time. That time is at most an hour before the previous checkpoint (the first
   checkpoint and a base have no such limit) and at most a minute after its own. For rows that are not sealed yet, the
   checkpoint is now. Where a clock was set back, a gap is recorded, and times from its beginning on come a second time.
   The gap of rows from the future is in their checkpoint, or in the next one: they may be sealed just before it is
   recorded. #}
WITH checkpoints AS (
    SELECT
        s.sealed_at, lag(s.sealed_at) OVER (ORDER BY s.id) AS previous_at,
    {% for row in ('transition', 'gap', 'source') %}
        lag(s.last_{{ row }}_id, 1, 0) OVER (ORDER BY s.id) AS before_{{ row }}_id, s.last_{{ row }}_id{{ "," if not loop.last }}
    {% endfor %}
    FROM (
        SELECT b.id, b.sealed_at, b.last_transition_id, b.last_gap_id, b.last_source_id FROM seals b
        {{ "WHERE " ~ from_base('b') if mode != 'pack' }}
        UNION ALL
        SELECT (SELECT coalesce(max(id), 0) + 1 FROM seals), {{ now() }}, {{ ([2 ** 63 - 1] * 3) | join(', ') }}
    ) s
),
steps AS (
    SELECT g.began_at, g.ended_at, k.previous_at, k.sealed_at
    FROM gaps g
    JOIN checkpoints k ON g.id > k.before_gap_id AND g.id <= k.last_gap_id
    WHERE g.cause = 'clock_set'
),
ranges AS (
    SELECT k.*, {{ plus_seconds('k.previous_at', -3600) }} AS earliest_at, {{ plus_seconds('k.sealed_at', 60) }} AS latest_at
    FROM checkpoints k
),
outside AS (
{% for table, row, time in (('transitions', 'transition', 'observed_at'), ('gaps', 'gap', 'ended_at'), ('sources', 'source', 'recorded_at')) %}
    SELECT '{{ table }}' AS name, t.id, t.{{ time }} AS at, '{{ time }}' AS what, r.earliest_at, r.latest_at, r.sealed_at
    FROM ranges r
    CROSS JOIN {{ table }} t
    WHERE t.id > r.before_{{ row }}_id AND t.id <= r.last_{{ row }}_id AND (t.{{ time }} < r.earliest_at OR t.{{ time }} > r.latest_at)
{{ "    UNION ALL" if not loop.last }}
{% endfor %}
)
SELECT
    CASE WHEN EXISTS (
        SELECT 1 FROM steps s
        WHERE (o.at <= s.previous_at AND o.at >= {{ plus_seconds('s.began_at', -3600) }})
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
