{# The legal time zones; '' where a cluster has no source, so that the setting's counts. #}
SELECT s.legal_timezone AS timezone FROM sources s
UNION
SELECT '' WHERE EXISTS (SELECT 1 FROM names n WHERE n.cluster NOT IN (SELECT s.cluster FROM sources s))
