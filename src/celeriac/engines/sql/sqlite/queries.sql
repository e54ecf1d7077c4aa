-- Every statement of the SQLite engine, by name.

-- Messages

-- name: create_queue
INSERT INTO celeriac_queues (name, used_at) VALUES (:name, :now) ON CONFLICT DO NOTHING;

-- name: create_lane
INSERT INTO celeriac_lanes (queue, task, form) VALUES (:queue, :task, :form)
ON CONFLICT DO NOTHING;

-- name: lanes
SELECT l.id, l.queue, l.task, l.form, q.message_ttl
FROM celeriac_lanes l LEFT JOIN celeriac_queues q ON q.name = l.queue;

-- name: lanes_version
SELECT version FROM celeriac_lanes_version;

-- What is claimed or set aside outlives its queue, and may come back: its lane stays.
-- name: delete_lanes
DELETE FROM celeriac_lanes WHERE queue = ? AND id NOT IN (
    SELECT lane FROM celeriac_messages
    WHERE id IN (SELECT id FROM celeriac_claims UNION ALL SELECT id FROM celeriac_dead)
);

-- name: delete_stray_lanes
DELETE FROM celeriac_lanes
WHERE queue NOT IN (SELECT name FROM celeriac_queues)
  AND NOT EXISTS (SELECT 1 FROM celeriac_ready r WHERE r.lane = celeriac_lanes.id)
  AND id NOT IN (SELECT lane FROM celeriac_scheduled)
  AND id NOT IN (
    SELECT lane FROM celeriac_messages
    WHERE id IN (SELECT id FROM celeriac_claims UNION ALL SELECT id FROM celeriac_dead)
);

-- name: next_tag
SELECT ifnull(max(id), 0) + 1 FROM celeriac_messages;

-- name: insert_message
INSERT INTO celeriac_messages
    (id, lane, rank, task_id, published_at, due_at, expires_at, envelope, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: insert_ready
INSERT INTO celeriac_ready (lane, rank, id) VALUES (?, ?, ?);

-- name: insert_scheduled
INSERT INTO celeriac_scheduled (due_at, id, lane, rank) VALUES (?, ?, ?, ?);

-- The price of asking whether there is work: one seek into the index for each lane that has
-- some, and one for all that have none. DISTINCT would read all that waits.
-- name: busy_lanes
WITH RECURSIVE busy (lane) AS (
    SELECT min(lane) FROM celeriac_ready
    UNION ALL
    SELECT (SELECT min(lane) FROM celeriac_ready WHERE lane > busy.lane)
    FROM busy WHERE busy.lane IS NOT NULL
)
SELECT lane FROM busy WHERE lane IS NOT NULL;

-- name: next_due
SELECT min(due_at) FROM celeriac_scheduled;

-- A bounded share at a time, so that a million tasks due at midnight do not hold the lock.
-- name: take_due
DELETE FROM celeriac_scheduled WHERE (due_at, id) IN (
    SELECT due_at, id FROM celeriac_scheduled WHERE due_at <= ? ORDER BY due_at, id LIMIT 1000
) RETURNING lane, rank, id;

-- The head of one lane. Lanes are merged by the caller, because SQLite would sort all that
-- waits in them: ORDER BY over several lanes can not use the index.
-- name: head
SELECT rank, id FROM celeriac_ready WHERE lane = ? ORDER BY rank, id LIMIT ?;

-- name: delete_ready
DELETE FROM celeriac_ready WHERE lane = ? AND rank = ? AND id = ?;

-- name: insert_claim
INSERT INTO celeriac_claims (id, token, worker, slot, claimed_at) VALUES (?, ?, ?, ?, ?);

-- name: claimed_messages
SELECT id, token, queue, envelope, body, task, task_id, priority, deaths, redelivered, expires_at,
       form
FROM celeriac_claimed WHERE id IN (SELECT value FROM json_each(?));

-- The fence: only claims that still carry their token are ended, and only these count.
-- name: end_claims
DELETE FROM celeriac_claims
WHERE token = ? AND id IN (SELECT value FROM json_each(?))
RETURNING id;

-- name: delete_messages
DELETE FROM celeriac_messages WHERE id IN (SELECT value FROM json_each(?));

-- name: restore_ready
INSERT INTO celeriac_ready (lane, rank, id)
SELECT lane, rank, id FROM celeriac_messages WHERE id IN (SELECT value FROM json_each(?));

-- A queue may have been deleted while its messages were claimed or set aside.
-- name: restore_queues
INSERT INTO celeriac_queues (name, used_at)
SELECT DISTINCT l.queue, ? FROM celeriac_messages m JOIN celeriac_lanes l ON l.id = m.lane
WHERE m.id IN (SELECT value FROM json_each(?)) AND true
ON CONFLICT DO NOTHING;

-- name: mark_redelivered
UPDATE celeriac_messages SET redelivered = 1, deaths = deaths + ?
WHERE id IN (SELECT value FROM json_each(?));

-- name: add_report
UPDATE celeriac_messages SET report = json_insert(ifnull(report, '[]'), '$[#]', json(?))
WHERE id IN (SELECT value FROM json_each(?));

-- name: rates
SELECT task, started_at FROM celeriac_rates;

-- name: set_rate
INSERT INTO celeriac_rates (task, started_at) VALUES (?, ?)
ON CONFLICT (task) DO UPDATE SET started_at = excluded.started_at;

-- name: purge_ready
DELETE FROM celeriac_ready WHERE lane IN (SELECT id FROM celeriac_lanes WHERE queue = ?)
RETURNING id;

-- name: purge_scheduled
DELETE FROM celeriac_scheduled WHERE lane IN (SELECT id FROM celeriac_lanes WHERE queue = ?)
RETURNING id;

-- Dead letters

-- name: insert_dead
INSERT INTO celeriac_dead (id, reason, died_at) VALUES (?, ?, ?);

-- Its time to expire is over: it failed, and whoever runs it again wants it to run.
-- name: forget_expiry
UPDATE celeriac_messages SET expires_at = NULL
WHERE expires_at IS NOT NULL AND id IN (SELECT value FROM json_each(?));

-- name: end_dead
DELETE FROM celeriac_dead WHERE id IN (SELECT value FROM json_each(?)) RETURNING id;

-- name: renew
UPDATE celeriac_messages SET deaths = 0, report = NULL, redelivered = 1
WHERE id IN (SELECT value FROM json_each(?));

-- A success is final, also of a task that was set aside in a run after it.
-- name: forget_failures
DELETE FROM celeriac_results WHERE state <> 'SUCCESS' AND task_id IN (
    SELECT task_id FROM celeriac_messages
    WHERE id IN (SELECT value FROM json_each(?)) AND task_id <> ''
    UNION ALL SELECT value FROM json_each(?)
);

-- name: queues_of
SELECT l.queue FROM celeriac_messages m JOIN celeriac_lanes l ON l.id = m.lane
WHERE m.id IN (SELECT value FROM json_each(?));

-- name: expire_dead
DELETE FROM celeriac_dead WHERE id IN (
    SELECT id FROM celeriac_dead WHERE died_at <= ? ORDER BY died_at LIMIT 1000
) RETURNING id;

-- Queues and exchanges

-- name: declare_queue
INSERT INTO celeriac_queues (name, expires, message_ttl, auto_delete, used_at)
VALUES (:name, :expires, :message_ttl, :auto_delete, :now)
ON CONFLICT (name) DO UPDATE SET
    expires = excluded.expires, message_ttl = excluded.message_ttl,
    auto_delete = excluded.auto_delete, used_at = excluded.used_at;

-- name: delete_queue
DELETE FROM celeriac_queues WHERE name = ?;

-- name: delete_queue_bindings
DELETE FROM celeriac_bindings WHERE queue = ?;

-- name: touch_queues
UPDATE celeriac_queues SET used_at = ? WHERE name IN (SELECT value FROM json_each(?));

-- name: idle_queues
SELECT name FROM celeriac_queues WHERE expires IS NOT NULL AND used_at + expires < ?;

-- name: auto_delete_queues
SELECT name FROM celeriac_queues WHERE auto_delete AND used_at < ?;

-- name: bind
INSERT INTO celeriac_bindings (exchange, type, routing_key, queue) VALUES (?, ?, ?, ?)
ON CONFLICT (exchange, routing_key, queue) DO UPDATE SET type = excluded.type;

-- name: unbind
DELETE FROM celeriac_bindings WHERE exchange = ? AND routing_key = ? AND queue = ?;

-- name: bindings
SELECT exchange, type, routing_key, queue FROM celeriac_bindings WHERE exchange = ?;

-- Results

-- A success is final: a second run of a redelivered task does not change what callers saw.
-- A row that is stored again gets a new id, so that the order of ids is that of the last storing.
-- name: store_result
INSERT INTO celeriac_results (task_id, state, meta, expires_at) VALUES (?, ?, ?, ?)
ON CONFLICT (task_id) DO UPDATE SET
    id = (SELECT max(id) + 1 FROM celeriac_results),
    state = excluded.state, meta = excluded.meta, expires_at = excluded.expires_at
WHERE state <> 'SUCCESS';

-- name: get_results
SELECT task_id, state, meta, expires_at FROM celeriac_results
WHERE task_id IN (SELECT value FROM json_each(?));

-- name: forget
DELETE FROM celeriac_results WHERE task_id IN (SELECT value FROM json_each(?));

-- A bounded share at a time, so that others can write in between.
-- name: expire_results
DELETE FROM celeriac_results WHERE id IN (
    SELECT id FROM celeriac_results WHERE expires_at <= ? ORDER BY expires_at LIMIT 1000
);

-- name: last_result
SELECT max(id) FROM celeriac_results;

-- A smaller share: where they fill the file, they may be large ones (4 ms for 250 of 4 KB).
-- name: trim_results
DELETE FROM celeriac_results WHERE id IN (
    SELECT id FROM celeriac_results WHERE id <= ? ORDER BY id LIMIT 250
);

-- name: save_group
INSERT INTO celeriac_groups (group_id, meta, expires_at) VALUES (?, ?, ?)
ON CONFLICT (group_id) DO UPDATE SET meta = excluded.meta, expires_at = excluded.expires_at;

-- name: get_group
SELECT meta FROM celeriac_groups WHERE group_id = ?;

-- name: delete_group
DELETE FROM celeriac_groups WHERE group_id = ?;

-- name: expire_groups
DELETE FROM celeriac_groups WHERE group_id IN (
    SELECT group_id FROM celeriac_groups WHERE expires_at <= ? ORDER BY expires_at LIMIT 1000
);

-- Chords

-- The first word counts: Celery tells a size of a group within a header, too.
-- name: set_chord_size
INSERT INTO celeriac_chords (group_id, size, used_at) VALUES (?, ?, ?)
ON CONFLICT (group_id) DO UPDATE SET
    size = coalesce(size, excluded.size), used_at = excluded.used_at;

-- name: add_to_chord
INSERT INTO celeriac_chords (group_id, extra, used_at) VALUES (?, 1, ?)
ON CONFLICT (group_id) DO UPDATE SET extra = extra + 1, used_at = excluded.used_at;

-- name: insert_part
INSERT INTO celeriac_chord_parts (group_id, member, place, meta) VALUES (?, ?, ?, ?)
ON CONFLICT DO NOTHING;

-- A chord that is finished before all its parts have come has no callback any more, and goes with
-- the last of them. (SQLite 3.40 takes IS NULL for false in the RETURNING of an upsert.)
-- name: count_part
INSERT INTO celeriac_chords (group_id, done, callback, used_at) VALUES (?, 1, ?, ?)
ON CONFLICT (group_id) DO UPDATE SET
    done = done + 1,
    callback = CASE WHEN completed_at IS NULL OR callback IS NOT NULL THEN excluded.callback END,
    used_at = excluded.used_at
RETURNING completed_at, done >= size + extra, typeof(callback) = 'null';

-- Once in the life of a chord: for the one who is to dispatch its callback.
-- name: complete_chord
UPDATE celeriac_chords SET completed_at = ? WHERE group_id = ?;

-- name: complete_chord_of_size
UPDATE celeriac_chords SET completed_at = ?
WHERE group_id = ? AND completed_at IS NULL AND done > 0 AND done >= size + extra;

-- name: chord_parts
SELECT p.group_id, p.member, p.place, p.meta, c.callback
FROM celeriac_chord_parts p JOIN celeriac_chords c ON c.group_id = p.group_id
WHERE p.group_id = ? AND c.callback IS NOT NULL ORDER BY p.place IS NULL, p.place, p.id;

-- One completed in the future was completed before the clock was set back. (CROSS JOIN: chords
-- first, asked every second; most of the parts belong to those that are not complete.)
-- name: ready_chords
SELECT p.group_id, p.member, p.place, p.meta, c.callback
FROM celeriac_chords c CROSS JOIN celeriac_chord_parts p ON p.group_id = c.group_id
WHERE (c.completed_at < ? OR c.completed_at > ?) AND c.callback IS NOT NULL GROUP BY c.group_id;

-- name: finish_chord
UPDATE celeriac_chords SET callback = NULL, completed_at = coalesce(completed_at, ?)
WHERE group_id = ? AND callback IS NOT NULL;

-- name: is_chord_over
SELECT 1 FROM celeriac_chords
WHERE group_id = ? AND completed_at IS NOT NULL AND callback IS NULL AND done >= size + extra;

-- name: drop_chord
DELETE FROM celeriac_chords WHERE group_id = ?;

-- name: delete_parts
DELETE FROM celeriac_chord_parts WHERE group_id = ?;

-- name: expired_chords
SELECT group_id FROM celeriac_chords WHERE used_at < ? LIMIT 1000;

-- Revocation

-- name: revoke
INSERT INTO celeriac_revoked (task_id, revoked_at, signal) VALUES (?, ?, ?)
ON CONFLICT (task_id) DO UPDATE SET signal = excluded.signal WHERE excluded.signal IS NOT NULL;

-- name: revoke_stamp
INSERT INTO celeriac_revoked_stamps (stamp, value, revoked_at) VALUES (?, ?, ?)
ON CONFLICT DO NOTHING;

-- Asked by every claimant for each batch: whether there are any, and whether the stamps are
-- still those that it has in mind.
-- name: any_revoked
SELECT EXISTS (SELECT 1 FROM celeriac_revoked),
       (SELECT min(id) FROM celeriac_revoked_stamps),
       (SELECT max(id) FROM celeriac_revoked_stamps);

-- name: revoked
SELECT task_id, signal FROM celeriac_revoked WHERE task_id IN (SELECT value FROM json_each(?));

-- name: all_revoked
SELECT task_id, signal FROM celeriac_revoked ORDER BY revoked_at;

-- name: revoked_stamps
SELECT stamp, value FROM celeriac_revoked_stamps ORDER BY id;

-- A task may be due later than revocations are kept.
-- name: expire_revoked
DELETE FROM celeriac_revoked
WHERE revoked_at < ? AND NOT EXISTS (
    SELECT 1 FROM celeriac_messages m
    WHERE m.task_id = celeriac_revoked.task_id AND m.task_id <> ''
);

-- name: expire_revoked_stamps
DELETE FROM celeriac_revoked_stamps
WHERE revoked_at < ?
  AND revoked_at < ifnull((SELECT published_at FROM celeriac_messages ORDER BY id LIMIT 1), 1e99);

-- name: waiting_tasks
SELECT m.lane, m.rank, m.id, m.due_at FROM celeriac_messages m
WHERE m.task_id <> '' AND m.task_id IN (SELECT value FROM json_each(:task_ids))
  AND NOT EXISTS (SELECT 1 FROM celeriac_claims c WHERE c.id = m.id)
  AND NOT EXISTS (SELECT 1 FROM celeriac_dead d WHERE d.id = m.id)
LIMIT :limit;

-- What was set aside has no time to expire any more.
-- name: waiting_expired
SELECT m.lane, m.rank, m.id, m.due_at FROM celeriac_messages m
WHERE m.expires_at <= :now AND NOT EXISTS (SELECT 1 FROM celeriac_claims c WHERE c.id = m.id)
ORDER BY m.expires_at LIMIT :limit;

-- name: delete_scheduled
DELETE FROM celeriac_scheduled WHERE due_at = ? AND id = ?;

-- Workers

-- name: register
INSERT INTO celeriac_workers
    (id, hostname, pid, queues, tasks, concurrency, started_at, heartbeat_at)
VALUES (:id, :hostname, :pid, :queues, :tasks, :concurrency, :now, :now)
ON CONFLICT (id) DO UPDATE SET
    hostname = excluded.hostname, pid = excluded.pid, queues = excluded.queues,
    tasks = excluded.tasks, concurrency = excluded.concurrency,
    heartbeat_at = excluded.heartbeat_at
RETURNING number;

-- name: heartbeat
UPDATE celeriac_workers SET heartbeat_at = ? WHERE id = ?;

-- While a worker's claims wait to be judged, its row tells whose they were.
-- name: deregister
DELETE FROM celeriac_workers
WHERE id = ? AND NOT EXISTS (SELECT 1 FROM celeriac_claims WHERE worker = number);

-- name: worker_number
SELECT number FROM celeriac_workers WHERE id = ?;

-- name: workers
SELECT id, hostname, pid, queues, tasks, concurrency, started_at, heartbeat_at
FROM celeriac_workers ORDER BY number;

-- name: worker_queues
SELECT queues FROM celeriac_workers WHERE id = ?;

-- name: claimants
SELECT DISTINCT c.worker, c.slot, w.id, w.hostname, w.heartbeat_at
FROM celeriac_claims c LEFT JOIN celeriac_workers w ON w.number = c.worker;

-- name: held_by
SELECT id, token, queue, envelope, body, task, task_id, priority, deaths, redelivered, expires_at,
       form
FROM celeriac_claimed WHERE worker = ? AND slot = ?
ORDER BY claimed_at, id;

-- Reading

-- name: queue_sizes
SELECT q.name, (
    SELECT count(*) FROM celeriac_lanes l JOIN celeriac_ready r ON r.lane = l.id
    WHERE l.queue = q.name
) FROM celeriac_queues q
WHERE :queues IS NULL OR q.name IN (SELECT value FROM json_each(:queues));

-- name: list_tasks
SELECT * FROM celeriac_tasks
WHERE (:worker IS NULL OR worker = :worker)
  AND (:tasks IS NULL OR task IN (SELECT value FROM json_each(:tasks)))
  AND (:queues IS NULL OR queue IN (SELECT value FROM json_each(:queues)))
  AND status = ifnull(:status, status) AND status <> 'dead'
ORDER BY id LIMIT :limit;

-- Apart from list_tasks, because only this shape can use the index.
-- name: list_tasks_by_id
SELECT * FROM celeriac_tasks
WHERE task_id <> '' AND task_id IN (SELECT value FROM json_each(:task_ids))
  AND (:worker IS NULL OR worker = :worker)
  AND (:tasks IS NULL OR task IN (SELECT value FROM json_each(:tasks)))
  AND (:queues IS NULL OR queue IN (SELECT value FROM json_each(:queues)))
  AND (:status IS NULL OR status = :status)
  AND (:reason IS NULL OR reason = :reason)
ORDER BY id LIMIT :limit;

-- CROSS JOIN: first the few that are claimed, then their messages. SQLite thinks of the reverse.
-- name: list_claimed_tasks
SELECT t.* FROM celeriac_claims c CROSS JOIN celeriac_tasks t ON t.id = c.id
WHERE (:worker IS NULL OR t.worker = :worker)
  AND (:tasks IS NULL OR t.task IN (SELECT value FROM json_each(:tasks)))
  AND (:queues IS NULL OR t.queue IN (SELECT value FROM json_each(:queues)))
ORDER BY t.id LIMIT :limit;

-- name: list_scheduled_tasks
SELECT t.* FROM celeriac_scheduled s CROSS JOIN celeriac_tasks t ON t.id = s.id
WHERE (:worker IS NULL OR t.worker = :worker)
  AND (:tasks IS NULL OR t.task IN (SELECT value FROM json_each(:tasks)))
  AND (:queues IS NULL OR t.queue IN (SELECT value FROM json_each(:queues)))
ORDER BY s.due_at, s.id LIMIT :limit;

-- name: list_dead_tasks
SELECT t.* FROM celeriac_dead d CROSS JOIN celeriac_tasks t ON t.id = d.id
WHERE :worker IS NULL
  AND (:reason IS NULL OR d.reason = :reason)
  AND (:tasks IS NULL OR t.task IN (SELECT value FROM json_each(:tasks)))
  AND (:queues IS NULL OR t.queue IN (SELECT value FROM json_each(:queues)))
ORDER BY d.died_at, d.id LIMIT :limit;

-- Space

-- name: pages
SELECT page_count - freelist_count, freelist_count, page_size, auto_vacuum
FROM pragma_page_count, pragma_freelist_count, pragma_page_size, pragma_auto_vacuum;

-- name: give_back
PRAGMA incremental_vacuum(1);

-- name: carry_over
PRAGMA wal_checkpoint(PASSIVE);

-- name: truncate_log
PRAGMA wal_checkpoint(TRUNCATE);

-- Schedules

-- name: add_entry
INSERT INTO celeriac_entries (schedule, name, last_run_at, runs) VALUES (?, ?, ?, 0)
ON CONFLICT DO NOTHING;

-- name: keep_entries
DELETE FROM celeriac_entries
WHERE schedule = ? AND name NOT IN (SELECT value FROM json_each(?));

-- name: get_entries
SELECT schedule, name, last_run_at, runs FROM celeriac_entries
WHERE schedule = ? AND name IN (SELECT value FROM json_each(?));

-- The fence: of several that know the same last run, the first one changes a row. One that is
-- missing was deleted by a beat with another configuration.
-- name: record_run
INSERT INTO celeriac_entries (schedule, name, last_run_at, runs)
VALUES (:schedule, :name, :now, :runs + 1)
ON CONFLICT (schedule, name) DO UPDATE SET last_run_at = excluded.last_run_at, runs = runs + 1
WHERE last_run_at = :last_run_at AND runs = :runs;
