{% from 'macros.sql' import known %}
SELECT t.* FROM {{ table }}transitions t WHERE {{ known('t', 'observed_at', 'transition_id') }}
