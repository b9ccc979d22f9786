{% from 'macros.sql' import known %}
SELECT s.* FROM {{ table }}sources s WHERE {{ known('s', 'recorded_at', 'source_id') }}
