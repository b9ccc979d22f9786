{# When days begin and end in the legal time zones, from Python, since SQLite has no time zones; '' is the settings' one. #}
{% if sqlite %}
SELECT
    json_extract(d.value, '$[0]') AS timezone, json_extract(d.value, '$[1]') AS day,
    json_extract(d.value, '$[2]') AS begins_at, json_extract(d.value, '$[3]') AS ends_at
FROM json_each(:zone) d
{% else %}
SELECT
    d.value->>0 AS timezone, CAST(d.value->>1 AS date) AS day,
    CAST(d.value->>2 || '+00' AS timestamptz) AS begins_at, CAST(d.value->>3 || '+00' AS timestamptz) AS ends_at
FROM json_array_elements(CAST(:zone AS json)) d(value)
{% endif %}
