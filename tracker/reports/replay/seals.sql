{% from 'macros.sql' import from_base %}
{# As of a checkpoint, the id of a seal is the checkpoint's number, from its text: rollbacks leave holes in ids. #}
{% set number = "CAST(substr(s.checkpoint, instr(s.checkpoint, 'number ') + 7, 18) AS INTEGER)" if sqlite
    else "CAST(substring(s.checkpoint FROM 'number ([0-9]{1,18})') AS bigint)" %}
{% if mode == 'time' %}
SELECT s.* FROM {{ table }}seals s WHERE s.sealed_at <= (SELECT c.at FROM clock c) AND {{ from_base('s') }}
{% else %}
SELECT {{ number }} AS id, s.last_transition_id, s.last_gap_id, s.last_source_id, s.sealed_at
FROM {{ table }}seals s
WHERE s.last_transition_id <= (SELECT c.transition_id FROM clock c) AND {{ from_base('s') }}
{% endif %}
