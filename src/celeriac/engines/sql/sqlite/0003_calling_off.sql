-- Tasks are called off by what they are stamped with, too, and while they run, by a signal; and
-- the expired are found quickly.

ALTER TABLE celeriac_revoked ADD COLUMN signal INTEGER;

CREATE TABLE celeriac_revoked_stamps (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    stamp      TEXT NOT NULL,
    value      TEXT NOT NULL,                -- as JSON
    revoked_at REAL NOT NULL,
    UNIQUE (stamp, value)
);

CREATE INDEX celeriac_messages_by_expiry ON celeriac_messages (expires_at)
    WHERE expires_at IS NOT NULL;
