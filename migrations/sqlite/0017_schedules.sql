-- Schedules: see `core::schedule`. Hosts without one pay for a look at an empty index.

CREATE TABLE schedule (
    tenant INTEGER NOT NULL REFERENCES tenant (id),
    name TEXT NOT NULL,
    -- When it occurs and what its tasks are, but for their input: `format::StoredSchedule` as JSON.
    definition TEXT NOT NULL,
    -- NULL is application/json.
    input_type TEXT,
    input BLOB NOT NULL,
    created_ms INTEGER NOT NULL,
    -- Since when it is paused.
    paused_ms INTEGER,
    -- When it occurs next; NULL when it is paused, or never does again.
    next_ms INTEGER,
    -- The last occurrence that was not missed, its task, and why it has none of its own.
    last_ms INTEGER,
    last_task INTEGER,
    last_code TEXT,
    last_message TEXT,
    PRIMARY KEY (tenant, name)
) STRICT;

CREATE INDEX schedule_next ON schedule (next_ms) WHERE next_ms IS NOT NULL;
