-- What was set aside is kept: still one row of celeriac_messages, named by a narrow table like
-- what waits or runs, so that setting aside and running again copy no body.

CREATE TABLE celeriac_dead (
    id      INTEGER PRIMARY KEY,             -- of the message
    reason  TEXT NOT NULL,
    died_at REAL NOT NULL
);
CREATE INDEX celeriac_dead_by_time ON celeriac_dead (died_at);

-- What happened to it, as a JSON array; NULL as long as nothing did.
ALTER TABLE celeriac_messages ADD COLUMN report TEXT;

DROP VIEW celeriac_tasks;
CREATE VIEW celeriac_tasks AS
SELECT m.id, m.task_id, l.task, l.queue,
       CASE WHEN c.id IS NOT NULL THEN 'claimed'
            WHEN d.id IS NOT NULL THEN 'dead'
            WHEN s.id IS NOT NULL THEN 'scheduled'
            ELSE 'ready' END AS status,
       -m.rank AS priority, m.published_at, m.due_at, m.envelope, m.body,
       w.id AS worker, c.slot, m.deaths, c.claimed_at, m.expires_at,
       d.reason, d.died_at, m.report
FROM celeriac_messages m
JOIN celeriac_lanes l ON l.id = m.lane
LEFT JOIN celeriac_claims c ON c.id = m.id
LEFT JOIN celeriac_dead d ON d.id = m.id
LEFT JOIN celeriac_workers w ON w.number = c.worker
LEFT JOIN celeriac_scheduled s ON s.due_at = m.due_at AND s.id = m.id;
