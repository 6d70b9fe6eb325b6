-- Groups of tasks: see `core::group`. Tasks of no group do not pay for them.

-- A group has the number of its first task; its tasks have the numbers from there on.
CREATE TABLE task_group (
    id INTEGER NOT NULL PRIMARY KEY,
    tenant INTEGER NOT NULL REFERENCES tenant (id),
    -- Its tasks, and what became of them.
    count INTEGER NOT NULL,
    completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0,
    -- So many stand in the queue or run at once; NULL is all.
    live_max INTEGER,
    -- 1 when the rest is cancelled as soon as one has failed.
    fail_fast INTEGER NOT NULL,
    -- Tasks that are not held, from the first on.
    released INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    finished_ms INTEGER
) STRICT;

ALTER TABLE task ADD COLUMN task_group INTEGER;
ALTER TABLE finished ADD COLUMN task_group INTEGER;
