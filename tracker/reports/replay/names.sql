SELECT j.id, j.cluster, j.jid FROM {{ table }}jobs j
