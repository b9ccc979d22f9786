{# As of a checkpoint the id of a seal is the checkpoint's number: a transaction that failed can leave a hole in ids. #}
{% if mode == 'time' %}
SELECT s.* FROM {{ table }}seals s WHERE s.sealed_at <= (SELECT c.at FROM clock c)
{% else %}
SELECT s.*
FROM (
    SELECT
        row_number() OVER (ORDER BY l.id) AS id, l.last_transition_id, l.last_gap_id, l.last_source_id, l.sealed_at
    FROM {{ table }}seals l
) s
WHERE s.id <= (SELECT c.number FROM clock c)
{% endif %}
