-- A lane is of one form: what its messages have in common is stored once, and not in each of them.
--
-- The view of claimed messages has another name than before, so that a process of an older version
-- that still runs claims nothing that it could not put together.

DROP VIEW celeriac_deliveries;
DROP VIEW celeriac_tasks;
DROP TRIGGER celeriac_lane_made;
DROP TRIGGER celeriac_lane_deleted;

ALTER TABLE celeriac_lanes RENAME TO celeriac_lanes_before;
CREATE TABLE celeriac_lanes (
    id    INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    task  TEXT NOT NULL,
    form  TEXT NOT NULL DEFAULT '',
    UNIQUE (queue, task, form)
);
INSERT INTO celeriac_lanes (id, queue, task) SELECT id, queue, task FROM celeriac_lanes_before;
DROP TABLE celeriac_lanes_before;
UPDATE celeriac_lanes_version SET version = version + 1;

CREATE TRIGGER celeriac_lane_made AFTER INSERT ON celeriac_lanes BEGIN
    UPDATE celeriac_lanes_version SET version = version + 1;
END;
CREATE TRIGGER celeriac_lane_deleted AFTER DELETE ON celeriac_lanes BEGIN
    UPDATE celeriac_lanes_version SET version = version + 1;
END;

-- A claimed message as the claimant gets it.
CREATE VIEW celeriac_claimed AS
SELECT m.id, c.token, l.queue, m.envelope, m.body, l.task, m.task_id, -m.rank AS priority,
       m.deaths, m.redelivered, m.expires_at, l.form, c.worker, c.slot, c.claimed_at
FROM celeriac_claims c
JOIN celeriac_messages m ON m.id = c.id
JOIN celeriac_lanes l ON l.id = m.lane;

CREATE VIEW celeriac_tasks AS
SELECT m.id, m.task_id, l.task, l.queue,
       CASE WHEN c.id IS NOT NULL THEN 'claimed'
            WHEN d.id IS NOT NULL THEN 'dead'
            WHEN s.id IS NOT NULL THEN 'scheduled'
            ELSE 'ready' END AS status,
       -m.rank AS priority, m.published_at, m.due_at, m.envelope, m.body,
       w.id AS worker, c.slot, m.deaths, c.claimed_at, m.expires_at,
       d.reason, d.died_at, m.report, l.form
FROM celeriac_messages m
JOIN celeriac_lanes l ON l.id = m.lane
LEFT JOIN celeriac_claims c ON c.id = m.id
LEFT JOIN celeriac_dead d ON d.id = m.id
LEFT JOIN celeriac_workers w ON w.number = c.worker
LEFT JOIN celeriac_scheduled s ON s.due_at = m.due_at AND s.id = m.id;
