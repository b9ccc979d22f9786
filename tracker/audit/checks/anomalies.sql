{# What decides about anomalies, each combination once, with its first row. #}
SELECT t.from_status, t.to_status, t.to_state, t.anomaly, t.found_before, count(*) AS rows, min(t.id) AS id
FROM (
    SELECT
        a.id, a.action, a.from_status, a.to_status, a.to_state, a.anomaly,
        coalesce(max(CASE WHEN a.to_status <> 'not_found' THEN 1 ELSE 0 END) OVER (
            PARTITION BY a.job_id ORDER BY a.seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ), 0) AS found_before
    FROM transitions a
) t
WHERE t.action = 'observed'
GROUP BY t.from_status, t.to_status, t.to_state, t.anomaly, t.found_before
