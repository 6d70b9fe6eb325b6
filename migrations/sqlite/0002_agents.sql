-- Agents and users, tasks that name them, and what lists and statistics of many tasks need.

CREATE TABLE agent (
    id INTEGER NOT NULL PRIMARY KEY,
    tenant INTEGER NOT NULL REFERENCES tenant (id),
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    -- `core::agent::AgentStatus`.
    status INTEGER NOT NULL CHECK (status BETWEEN 0 AND 4),
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL
) STRICT;

-- Lists of agents, newest first: all of a tenant, and those of a kind, a status, or both.
CREATE INDEX agent_tenant ON agent (tenant);
CREATE INDEX agent_kind ON agent (tenant, kind, status);

-- What became of an agent's tasks, from their submit on. Written in the transaction that changes a task, once per agent
-- and call; it outlives the tasks' own rows.
CREATE TABLE agent_count (
    agent INTEGER NOT NULL PRIMARY KEY REFERENCES agent (id),
    tenant INTEGER NOT NULL,
    total INTEGER NOT NULL DEFAULT 0,
    completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0,
    -- Ended tasks whose last attempt ran, and how long those attempts ran together, in microseconds.
    timed INTEGER NOT NULL DEFAULT 0,
    elapsed_us INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Whom agents act for. (`user` is a reserved word.)
CREATE TABLE app_user (
    id INTEGER NOT NULL PRIMARY KEY,
    tenant INTEGER NOT NULL REFERENCES tenant (id),
    name TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

CREATE INDEX app_user_tenant ON app_user (tenant);

ALTER TABLE task ADD COLUMN agent INTEGER;
ALTER TABLE task ADD COLUMN app_user INTEGER;
ALTER TABLE finished ADD COLUMN agent INTEGER;
ALTER TABLE finished ADD COLUMN app_user INTEGER;

-- A user's and an agent's tasks by id. Tasks that name neither do not pay for them.
CREATE INDEX task_user ON task (tenant, app_user) WHERE app_user IS NOT NULL;
CREATE INDEX task_agent ON task (tenant, agent) WHERE agent IS NOT NULL;
CREATE INDEX finished_user ON finished (tenant, app_user) WHERE app_user IS NOT NULL;
CREATE INDEX finished_agent ON finished (tenant, agent) WHERE agent IS NOT NULL;

-- Lists of one kind or plugin, and statistics over a range of creation.
CREATE INDEX finished_kind ON finished (tenant, kind);
CREATE INDEX finished_created ON finished (tenant, created_ms);

-- Grows with every install and every removal of a plugin.
INSERT INTO sequence (name, last) VALUES ('catalog', 0);
