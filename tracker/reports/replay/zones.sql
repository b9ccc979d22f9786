{# The legal time zones; '' if a cluster has no source, which stands for the settings' time zone. #}
SELECT s.legal_timezone AS timezone FROM sources s
UNION
SELECT '' WHERE EXISTS (SELECT 1 FROM names n WHERE n.cluster NOT IN (SELECT s.cluster FROM sources s))
