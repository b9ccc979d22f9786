{% from 'macros.sql' import differ %}
{# jobs is the replay of transitions; the first answer settles the deadline. In SQLite the CROSS keeps the replay on the
   left: it is read job by job and needs no memory. #}
SELECT 0 AS is_note, 'jobs' AS name, c.id, c.cluster, c.jid, c.seq, c.message
FROM (
    SELECT
        j.id, j.cluster, j.jid, j.seq,
        CASE
            WHEN j.state = 'open' AND j.due_at IS NULL THEN 'it is open, but due_at is empty: it is never polled'
            WHEN j.polls < r.polls THEN 'polls is ' || j.polls || ', but its transitions say ' || r.polls
            WHEN j.seen_at < r.seen_at OR (j.seen_at IS NULL AND r.seen_at IS NOT NULL)
                THEN 'seen_at is ' || coalesce(CAST(j.seen_at AS text), 'empty') || ', but its transitions say ' || r.seen_at
            ELSE nullif(substr(''
{% for column in ('kind', 'reference', 'received_at', 'submitted_at', 'extended_on', 'registered_at', 'registered_by', 'state', 'status', 'status_after', 'status_by', 'ended_after', 'ended_by', 'seq', 'deadline_on', 'deadline_at') %}
                || CASE WHEN {{ differ('j.' ~ column, 'r.' ~ column) }}{{ ' AND j.status IS NOT NULL' if column.startswith('deadline') }} THEN
                    '; {{ column }} is ' || coalesce(CAST(j.{{ column }} AS text), 'empty') || ', but its transitions say '
                    || coalesce(CAST(r.{{ column }} AS text), 'empty') ELSE '' END
{% endfor %}
                , 3), '')
        END AS message
    FROM replayed r
    {{ 'CROSS ' if sqlite }}JOIN {{ table }}jobs j ON j.id = r.id
) c
WHERE c.message IS NOT NULL
UNION ALL
SELECT 0, 'jobs', j.id, j.cluster, j.jid, j.seq, 'its registration is missing in transitions'
FROM {{ table }}jobs j
WHERE NOT EXISTS (SELECT 1 FROM transitions t WHERE t.job_id = j.id AND t.seq = 0)
