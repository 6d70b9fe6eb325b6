-- Tenants, plugins, tasks. Times are milliseconds since 1970, sizes are bytes, states are `core::task::TaskState`.
--
-- A live task is one row of `task`; when it ends it moves to `finished` in the transaction that ends it, so the table
-- that is leased from stays small whatever the history. Foreign keys stand where rows are few, and from a task to its
-- kind, which proves that a task and its plugin have one tenant. Everything else that follows a task follows it by
-- code, in the same transaction.

-- The last number given out, by name: `task` ids and `holder` ids. They only grow, and start from the clock, so that a
-- restored older file does not give a number twice.
CREATE TABLE sequence (
    name TEXT NOT NULL PRIMARY KEY,
    last INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO sequence (name, last) VALUES ('holder', 0), ('task', 0);

CREATE TABLE tenant (
    id INTEGER NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

-- How many tasks a tenant has: equal to a recount at every commit. `live` is what the quota looks at.
CREATE TABLE tenant_count (
    tenant INTEGER NOT NULL PRIMARY KEY REFERENCES tenant (id),
    live INTEGER NOT NULL DEFAULT 0 CHECK (live >= 0),
    completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0
) STRICT;

-- What a tenant spent on a UTC day; `day` counts from 1970-01-01.
CREATE TABLE usage (
    tenant INTEGER NOT NULL REFERENCES tenant (id),
    day INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    completed INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    fuel_used INTEGER NOT NULL,
    guest_us INTEGER NOT NULL,
    PRIMARY KEY (tenant, day)
) STRICT, WITHOUT ROWID;

CREATE TABLE plugin (
    id INTEGER NOT NULL PRIMARY KEY,
    tenant INTEGER NOT NULL REFERENCES tenant (id),
    name TEXT NOT NULL,
    -- The `plugin_version` that new attempts run.
    current INTEGER,
    -- 1 when no new task can name it; its versions stay for the attempts that name them.
    removed INTEGER NOT NULL DEFAULT 0,
    UNIQUE (tenant, name)
) STRICT;

-- Immutable: a name stands for the same bytes and the same manifest for ever.
CREATE TABLE plugin_version (
    id INTEGER NOT NULL PRIMARY KEY,
    tenant INTEGER NOT NULL REFERENCES tenant (id),
    plugin INTEGER NOT NULL REFERENCES plugin (id),
    name TEXT NOT NULL,
    -- SHA-256 of the component, whose bytes are in components.db.
    digest BLOB NOT NULL,
    component_bytes INTEGER NOT NULL,
    -- `core::manifest::Manifest` as JSON.
    manifest TEXT NOT NULL,
    installed_ms INTEGER NOT NULL,
    UNIQUE (plugin, name)
) STRICT;

-- Every kind that a plugin ever had.
CREATE TABLE kind (
    id INTEGER NOT NULL PRIMARY KEY,
    tenant INTEGER NOT NULL REFERENCES tenant (id),
    plugin INTEGER NOT NULL REFERENCES plugin (id),
    name TEXT NOT NULL,
    UNIQUE (plugin, name),
    UNIQUE (tenant, id)
) STRICT;

-- Incarnations of hosts. A task's lease is its holder's: one row is beaten, not one per task. The row is deleted when
-- the holder closes or is rescued, so a late beat finds nothing.
CREATE TABLE holder (
    id INTEGER NOT NULL PRIMARY KEY,
    opened_ms INTEGER NOT NULL,
    until_ms INTEGER NOT NULL
) STRICT;

-- Live tasks only: pending (0) and running (1).
CREATE TABLE task (
    id INTEGER NOT NULL PRIMARY KEY,
    tenant INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    state INTEGER NOT NULL DEFAULT 0 CHECK (state IN (0, 1)),
    -- Grows with every lease and every cancel, also over a retry by hand.
    token INTEGER NOT NULL DEFAULT 0,
    holder INTEGER CHECK ((holder IS NOT NULL) = (state = 1)),
    -- Attempts used up, and how many of them ended by their deadline, since the submit or the last retry by hand.
    attempts INTEGER NOT NULL DEFAULT 0,
    deadlines INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    -- Attempts before the last retry by hand: numbers of kept attempts go on from here.
    earlier INTEGER NOT NULL DEFAULT 0,
    created_ms INTEGER NOT NULL,
    run_at_ms INTEGER NOT NULL,
    root INTEGER NOT NULL,
    parent INTEGER,
    depth INTEGER NOT NULL DEFAULT 0,
    -- `core::policy::BudgetRequest` as JSON; NULL when it asks for nothing.
    budget TEXT,
    trace TEXT,
    -- NULL is application/json.
    input_type TEXT,
    -- Size of an input that is in `task_input`; NULL when it stands here.
    input_bytes INTEGER,
    input BLOB,
    FOREIGN KEY (tenant, kind) REFERENCES kind (tenant, id)
) STRICT;

-- What a lease walks: tenant by tenant, oldest run_at first, then oldest id (the row's own key ends every index).
CREATE INDEX task_ready ON task (tenant, run_at_ms) WHERE state = 0;

-- The few that run: for a rescue and for lists.
CREATE INDEX task_running ON task (tenant) WHERE state = 1;

-- Children by parent; roots do not pay for it.
CREATE INDEX task_parent ON task (parent) WHERE parent IS NOT NULL;

-- Inputs too large to be rewritten with every change of state. The row stays where it is when its task ends without
-- completing, for a retry by hand.
CREATE TABLE task_input (
    task INTEGER NOT NULL PRIMARY KEY,
    tenant INTEGER NOT NULL,
    bytes BLOB NOT NULL
) STRICT;

-- Ended tasks: completed (2), failed (3) and cancelled (4), with the attempt that ended them.
CREATE TABLE finished (
    id INTEGER NOT NULL PRIMARY KEY,
    tenant INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    state INTEGER NOT NULL CHECK (state IN (2, 3, 4)),
    token INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    earlier INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    run_at_ms INTEGER NOT NULL,
    finished_ms INTEGER NOT NULL,
    root INTEGER NOT NULL,
    parent INTEGER,
    depth INTEGER NOT NULL,
    -- The attempt that ended it, number `earlier + attempts`; all NULL when no attempt did.
    started_ms INTEGER,
    version INTEGER,
    fuel_used INTEGER,
    memory_bytes_peak INTEGER,
    host_calls INTEGER,
    elapsed_us INTEGER,
    taint INTEGER,
    effects INTEGER,
    -- Why it failed; `detail` is the limit, the backtrace and the plugin's retry wish as JSON, NULL when there is none.
    code TEXT,
    message TEXT,
    detail TEXT,
    -- What a retry by hand needs; NULL when it completed.
    budget TEXT,
    trace TEXT,
    input_type TEXT,
    input_bytes INTEGER,
    -- NULL is application/json.
    result_type TEXT,
    input BLOB,
    result BLOB
) STRICT;

-- Lists: a tenant's tasks by id.
CREATE INDEX finished_tenant ON finished (tenant);

-- The few that did not complete, which people look for.
CREATE INDEX finished_incomplete ON finished (tenant) WHERE state <> 2;

CREATE INDEX finished_parent ON finished (parent) WHERE parent IS NOT NULL;

-- Attempts that did not end their task: retried ones, and the last one before a retry by hand.
CREATE TABLE attempt (
    task INTEGER NOT NULL,
    number INTEGER NOT NULL,
    tenant INTEGER NOT NULL,
    started_ms INTEGER NOT NULL,
    version INTEGER,
    fuel_used INTEGER NOT NULL,
    memory_bytes_peak INTEGER NOT NULL,
    host_calls INTEGER NOT NULL,
    elapsed_us INTEGER NOT NULL,
    taint INTEGER NOT NULL,
    effects INTEGER NOT NULL,
    code TEXT,
    message TEXT,
    detail TEXT,
    PRIMARY KEY (task, number)
) STRICT;

-- Logs of attempts, encoded by `core::log`.
CREATE TABLE attempt_log (
    task INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    tenant INTEGER NOT NULL,
    bytes BLOB NOT NULL,
    PRIMARY KEY (task, attempt)
) STRICT;

-- Keys of submits and what they became. A key is one submit's until it expires.
CREATE TABLE idempotency (
    tenant INTEGER NOT NULL,
    key TEXT NOT NULL,
    first INTEGER NOT NULL,
    count INTEGER NOT NULL,
    -- BLAKE3 of the body the key came with.
    body BLOB NOT NULL,
    expires_ms INTEGER NOT NULL,
    PRIMARY KEY (tenant, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_expires ON idempotency (expires_ms);
