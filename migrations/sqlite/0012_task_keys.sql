-- Keys of kinds: see `core::once`. Tasks without one do not pay for them.

-- The task that a key of a kind stands for: the one that was submitted under it last, live or ended.
CREATE TABLE task_key (
    tenant INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    key TEXT NOT NULL,
    task INTEGER NOT NULL,
    -- When it is or was due.
    due_ms INTEGER NOT NULL,
    -- When the key may be forgotten, if its task has ended by then.
    expires_ms INTEGER NOT NULL,
    PRIMARY KEY (tenant, kind, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX task_key_expires ON task_key (expires_ms);
