-- Agents and users, tasks that name them, and what lists and statistics of many tasks need.

CREATE TABLE agent (
    id bigint NOT NULL PRIMARY KEY,
    tenant bigint NOT NULL REFERENCES tenant (id),
    name text NOT NULL,
    kind text NOT NULL,
    -- `core::agent::AgentStatus`.
    status smallint NOT NULL CHECK (status BETWEEN 0 AND 4),
    created_ms bigint NOT NULL,
    updated_ms bigint NOT NULL
);

-- Lists of agents, newest first: all of a tenant, and those of a kind, a status, or both.
CREATE INDEX agent_tenant ON agent (tenant, id);
CREATE INDEX agent_kind ON agent (tenant, kind, status, id);

-- What became of an agent's tasks, from their submit on. Written in the transaction that changes a task, once per agent
-- and call; it outlives the tasks' own rows.
CREATE TABLE agent_count (
    agent bigint NOT NULL PRIMARY KEY REFERENCES agent (id),
    tenant bigint NOT NULL,
    total bigint NOT NULL DEFAULT 0,
    completed bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    cancelled bigint NOT NULL DEFAULT 0,
    -- Ended tasks whose last attempt ran, and how long those attempts ran together, in microseconds.
    timed bigint NOT NULL DEFAULT 0,
    elapsed_us bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- Whom agents act for. (`user` is a reserved word.)
CREATE TABLE app_user (
    id bigint NOT NULL PRIMARY KEY,
    tenant bigint NOT NULL REFERENCES tenant (id),
    name text NOT NULL,
    created_ms bigint NOT NULL
);

CREATE INDEX app_user_tenant ON app_user (tenant, id);

ALTER TABLE task ADD COLUMN agent bigint, ADD COLUMN app_user bigint;
ALTER TABLE finished ADD COLUMN agent bigint, ADD COLUMN app_user bigint;

-- A user's and an agent's tasks by id. Tasks that name neither do not pay for them.
CREATE INDEX task_user ON task (tenant, app_user, id) WHERE app_user IS NOT NULL;
CREATE INDEX task_agent ON task (tenant, agent, id) WHERE agent IS NOT NULL;
CREATE INDEX finished_user ON finished (tenant, app_user, id) WHERE app_user IS NOT NULL;
CREATE INDEX finished_agent ON finished (tenant, agent, id) WHERE agent IS NOT NULL;

-- Lists of one kind or plugin.
CREATE INDEX finished_kind ON finished (tenant, kind, id);

-- Statistics over a range of creation. Rows come in the order of their ends, which is nearly that of their creation, so
-- a summary of each stretch of pages is enough and costs next to nothing to keep.
CREATE INDEX finished_created ON finished USING brin (created_ms) WITH (pages_per_range = 32, autosummarize = on);

-- Grows with every install and every removal of a plugin.
INSERT INTO sequence (name, last) VALUES ('catalog', 0);

DO $$
DECLARE
    relation text;
BEGIN
    FOREACH relation IN ARRAY ARRAY['agent', 'agent_count', 'app_user'] LOOP
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO keiko_system', relation);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE ON %I TO keiko_tenant', relation);
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', relation);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', relation);
        EXECUTE format('CREATE POLICY system ON %I TO keiko_system USING (true) WITH CHECK (true)', relation);
        EXECUTE format('CREATE POLICY tenant ON %I TO keiko_tenant USING (tenant = keiko_tenant_id())
            WITH CHECK (tenant = keiko_tenant_id())', relation);
    END LOOP;
END $$;
