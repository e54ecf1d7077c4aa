-- When each entry of a schedule ran last: the state of Celery's beat.

CREATE TABLE celeriac_entries (
    schedule    TEXT NOT NULL,               -- whose: the name of a Celery app
    name        TEXT NOT NULL,
    last_run_at REAL NOT NULL,
    runs        INTEGER NOT NULL,
    PRIMARY KEY (schedule, name)
) WITHOUT ROWID;
