-- The queue file, version 1.
--
-- A message is one row of celeriac_messages from publish to acknowledgement, written once.
-- Where it stands is told by the narrow table that names it: ready, scheduled or claims. So a
-- claim rewrites a few small keys instead of whole messages, and its cost depends neither on
-- how many wait nor on how many are finished.

CREATE TABLE celeriac_queues (
    name        TEXT PRIMARY KEY,
    expires     REAL,
    message_ttl REAL,
    auto_delete INTEGER NOT NULL DEFAULT 0,
    used_at     REAL NOT NULL
) WITHOUT ROWID;

-- One lane for each task in each queue. A worker claims from the lanes whose task it knows, so
-- messages of unknown or held-back tasks are stepped over without being read.
CREATE TABLE celeriac_lanes (
    id    INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    task  TEXT NOT NULL,
    UNIQUE (queue, task)
);

-- Every process keeps the lanes in mind, and asks only whether this number is still the same.
-- It starts at random, so that a new file in the place of an old one shows as well.
CREATE TABLE celeriac_lanes_version (version INTEGER NOT NULL);
INSERT INTO celeriac_lanes_version VALUES (random() >> 2);

CREATE TRIGGER celeriac_lane_made AFTER INSERT ON celeriac_lanes BEGIN
    UPDATE celeriac_lanes_version SET version = version + 1;
END;
CREATE TRIGGER celeriac_lane_deleted AFTER DELETE ON celeriac_lanes BEGIN
    UPDATE celeriac_lanes_version SET version = version + 1;
END;
CREATE TRIGGER celeriac_queue_made AFTER INSERT ON celeriac_queues
WHEN new.message_ttl IS NOT NULL BEGIN
    UPDATE celeriac_lanes_version SET version = version + 1;
END;
CREATE TRIGGER celeriac_queue_changed AFTER UPDATE OF message_ttl ON celeriac_queues
WHEN new.message_ttl IS NOT old.message_ttl BEGIN
    UPDATE celeriac_lanes_version SET version = version + 1;
END;
CREATE TRIGGER celeriac_queue_deleted AFTER DELETE ON celeriac_queues
WHEN old.message_ttl IS NOT NULL BEGIN
    UPDATE celeriac_lanes_version SET version = version + 1;
END;

CREATE TABLE celeriac_messages (
    id           INTEGER PRIMARY KEY,
    lane         INTEGER NOT NULL,
    rank         INTEGER NOT NULL,           -- the priority, negated: lower comes first
    task_id      TEXT NOT NULL,
    published_at REAL NOT NULL,
    due_at       REAL,
    expires_at   REAL,
    deaths       INTEGER NOT NULL DEFAULT 0,
    redelivered  INTEGER NOT NULL DEFAULT 0,
    envelope     TEXT NOT NULL,
    body         BLOB NOT NULL
);
CREATE INDEX celeriac_messages_by_task_id ON celeriac_messages (task_id) WHERE task_id <> '';

CREATE TABLE celeriac_ready (
    lane INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    id   INTEGER NOT NULL,
    PRIMARY KEY (lane, rank, id)
) WITHOUT ROWID;

CREATE TABLE celeriac_scheduled (
    due_at REAL NOT NULL,
    id     INTEGER NOT NULL,
    lane   INTEGER NOT NULL,
    rank   INTEGER NOT NULL,
    PRIMARY KEY (due_at, id)
) WITHOUT ROWID;

CREATE TABLE celeriac_claims (
    id         INTEGER PRIMARY KEY,          -- of the message
    token      INTEGER NOT NULL,
    worker     INTEGER NOT NULL,
    slot       INTEGER NOT NULL,
    claimed_at REAL NOT NULL
);

CREATE TABLE celeriac_bindings (
    exchange    TEXT NOT NULL,
    type        TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    queue       TEXT NOT NULL,
    PRIMARY KEY (exchange, routing_key, queue)
) WITHOUT ROWID;

CREATE TABLE celeriac_results (
    id         INTEGER PRIMARY KEY,
    task_id    TEXT NOT NULL UNIQUE,
    state      TEXT NOT NULL,
    meta       BLOB NOT NULL,
    expires_at REAL
);
CREATE INDEX celeriac_results_by_expiry ON celeriac_results (expires_at)
    WHERE expires_at IS NOT NULL;

CREATE TABLE celeriac_groups (
    group_id   TEXT PRIMARY KEY,
    meta       BLOB NOT NULL,
    expires_at REAL
) WITHOUT ROWID;
CREATE INDEX celeriac_groups_by_expiry ON celeriac_groups (expires_at)
    WHERE expires_at IS NOT NULL;

-- Parts may come before the size is known, and each counts once, however often it runs.
CREATE TABLE celeriac_chords (
    group_id     TEXT PRIMARY KEY,
    size         INTEGER,
    extra        INTEGER NOT NULL DEFAULT 0,
    done         INTEGER NOT NULL DEFAULT 0,
    callback     BLOB,
    completed_at REAL,
    used_at      REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE celeriac_chord_parts (
    id       INTEGER PRIMARY KEY,
    group_id TEXT NOT NULL,
    member   TEXT NOT NULL,
    place    INTEGER,
    meta     BLOB NOT NULL,
    UNIQUE (group_id, member)
);

CREATE TABLE celeriac_revoked (
    task_id    TEXT PRIMARY KEY,
    revoked_at REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE celeriac_rates (
    task       TEXT PRIMARY KEY,
    started_at REAL NOT NULL                 -- when it was last handed to a claimant
) WITHOUT ROWID;

CREATE TABLE celeriac_workers (
    number       INTEGER PRIMARY KEY AUTOINCREMENT,
    id           TEXT NOT NULL UNIQUE,
    hostname     TEXT NOT NULL,
    pid          INTEGER NOT NULL,
    queues       TEXT NOT NULL,
    tasks        TEXT NOT NULL,
    concurrency  INTEGER NOT NULL,
    started_at   REAL NOT NULL,
    heartbeat_at REAL NOT NULL
);

-- A claimed message as the claimant gets it.
CREATE VIEW celeriac_deliveries AS
SELECT m.id, c.token, l.queue, m.envelope, m.body, l.task, m.task_id, -m.rank AS priority,
       m.deaths, m.redelivered, m.expires_at, c.worker, c.slot, c.claimed_at
FROM celeriac_claims c
JOIN celeriac_messages m ON m.id = c.id
JOIN celeriac_lanes l ON l.id = m.lane;

-- Every stored message with where it stands, for those who look in.
CREATE VIEW celeriac_tasks AS
SELECT m.id, m.task_id, l.task, l.queue,
       CASE WHEN c.id IS NOT NULL THEN 'claimed'
            WHEN s.id IS NOT NULL THEN 'scheduled'
            ELSE 'ready' END AS status,
       -m.rank AS priority, m.published_at, m.due_at, m.envelope, m.body,
       w.id AS worker, c.slot, m.deaths, c.claimed_at, m.expires_at
FROM celeriac_messages m
JOIN celeriac_lanes l ON l.id = m.lane
LEFT JOIN celeriac_claims c ON c.id = m.id
LEFT JOIN celeriac_workers w ON w.number = c.worker
LEFT JOIN celeriac_scheduled s ON s.due_at = m.due_at AND s.id = m.id;
