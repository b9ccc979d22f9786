{# What a database refuses but a pack can hold: an id twice, an id that no checkpoint closes, a job with two names. #}
{% for name, last in (('transitions', 'transition'), ('gaps', 'gap'), ('sources', 'source')) %}
SELECT
    0 AS is_note, '{{ name }}' AS name, r.id, NULL AS cluster, NULL AS jid, NULL AS seq,
    CASE WHEN count(*) > 1 THEN count(*) || ' rows have this id' ELSE 'no checkpoint closes this row' END AS message
FROM {{ name }} r
GROUP BY r.id
HAVING count(*) > 1 OR r.id > (SELECT max(s.last_{{ last }}_id) FROM seals s)
UNION ALL
{% endfor %}
{% for key in ('n.id', 'n.cluster, n.jid') %}
SELECT 0, 'jobs', min(n.id), min(n.cluster), min(n.jid), NULL, 'it has more than one id, cluster or jid'
FROM names n
GROUP BY {{ key }}
HAVING count(*) > 1
{{ "UNION ALL" if not loop.last }}
{% endfor %}
