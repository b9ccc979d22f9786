{% from 'macros.sql' import known %}
SELECT g.* FROM {{ table }}gaps g WHERE {{ known('g', 'ended_at', 'gap_id') }}
