{% from 'macros.sql' import number %}
{# As of a checkpoint the id of a seal is the checkpoint's number, from its text: ids have holes where transactions failed. #}
{% if mode == 'time' %}
SELECT s.* FROM {{ table }}seals s WHERE s.sealed_at <= (SELECT c.at FROM clock c)
{% else %}
SELECT {{ number('s.checkpoint') }} AS id, s.last_transition_id, s.last_gap_id, s.last_source_id, s.sealed_at
FROM {{ table }}seals s
WHERE {{ number('s.checkpoint') }} <= (SELECT c.number FROM clock c)
{% endif %}
