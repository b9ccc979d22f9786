{# What a database refuses, and a pack could say: an id twice, or one that no checkpoint closes; a job with two names. #}
{% for name, last in (('transitions', 'transition'), ('gaps', 'gap'), ('sources', 'source')) %}
SELECT
    0 AS is_note, '{{ name }}' AS name, r.id, NULL AS cluster, NULL AS jid, NULL AS seq,
    CASE WHEN count(*) > 1 THEN 'this id is there ' || count(*) || ' times' ELSE 'no checkpoint closes this row' END AS message
FROM {{ name }} r
GROUP BY r.id
HAVING count(*) > 1 OR r.id > (SELECT max(s.last_{{ last }}_id) FROM seals s)
UNION ALL
{% endfor %}
SELECT 0, 'jobs', n.id, n.cluster, n.jid, NULL, 'a job has one id, one cluster and one jid, and this one has several'
FROM names n
GROUP BY n.id
HAVING count(*) > 1
UNION ALL
SELECT 0, 'jobs', min(n.id), n.cluster, n.jid, NULL, 'a job has one id, one cluster and one jid, and this one has several'
FROM names n
GROUP BY n.cluster, n.jid
HAVING count(*) > 1
