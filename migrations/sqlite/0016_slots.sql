-- Slots: see `core::slot`. Tasks that need none do not pay for them.

-- The key of a task's kind under which few run at once.
ALTER TABLE task ADD COLUMN slot_key TEXT;
ALTER TABLE finished ADD COLUMN slot_key TEXT;

-- Whose a slot is: of the lease of a task under a token, or kept for the lease that comes next. It is free when that lease
-- is over; nobody notes it, and the row goes when somebody looks.
CREATE TABLE slot_use (
    tenant INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    -- Empty for the whole kind.
    key TEXT NOT NULL,
    task INTEGER NOT NULL,
    token INTEGER NOT NULL,
    PRIMARY KEY (tenant, kind, key, task)
) STRICT, WITHOUT ROWID;

-- Tasks that are parked because there was no slot, in their order. One that ended meanwhile stays until its turn comes.
CREATE TABLE slot_wait (
    tenant INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    key TEXT NOT NULL,
    place_ms INTEGER NOT NULL,
    task INTEGER NOT NULL,
    PRIMARY KEY (tenant, kind, key, place_ms, task)
) STRICT, WITHOUT ROWID;
