-- Tenants, plugins, tasks. Times are milliseconds since 1970, sizes are bytes, states are `core::task::TaskState`.
--
-- A live task is one row of `task`; when it ends it moves to `finished` in the transaction that ends it, so the table
-- that is leased from stays small whatever the history. Foreign keys stand where rows are few; a task's kind is proven
-- by the statement that stores it, because a key would lock the kind's row with every submit.
--
-- Two roles work here, whoever connects: `keiko_system` leads the life of tasks across tenants; `keiko_tenant` reads and
-- writes what belongs to the tenant named by the setting `keiko.tenant`, and nothing else, by row-level security.

DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['keiko_system', 'keiko_tenant'] LOOP
        -- Roles belong to the whole server: another database's migration may make them at the same time.
        BEGIN
            IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = wanted) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
        -- A superuser may take every role, and a role that may be taken needs no grant. From 16 on, who makes a role is
        -- its member but may not take it.
        IF NOT pg_has_role(current_user, wanted,
                CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN 'SET' ELSE 'MEMBER' END) THEN
            EXECUTE format('GRANT %I TO CURRENT_USER', wanted);
        END IF;
    END LOOP;
END $$;

-- The time that hosts compare: the database's clock, of the statement. A test moves it: by `keiko.time_shift_ms`, or, with
-- `keiko.time` = `caller`, to whatever the caller says.
CREATE FUNCTION keiko_now(caller_ms bigint) RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN current_setting('keiko.time', true) = 'caller' THEN caller_ms
        ELSE (extract(epoch FROM statement_timestamp()) * 1000)::bigint
            + coalesce(nullif(current_setting('keiko.time_shift_ms', true), '')::bigint, 0)
    END
$$;

-- Whose rows `keiko_tenant` works with.
CREATE FUNCTION keiko_tenant_id() RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT nullif(current_setting('keiko.tenant', true), '')::bigint
$$;

-- The last number given out, by name: `task` ids and `holder` ids. They only grow, and start from the clock, so that a
-- restored older database does not give a number twice.
CREATE TABLE sequence (
    name text NOT NULL PRIMARY KEY,
    last bigint NOT NULL
) WITH (fillfactor = 50);

INSERT INTO sequence (name, last) VALUES ('holder', 0), ('task', 0);

CREATE TABLE tenant (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE
);

-- How many tasks a tenant has: equal to a recount at every commit. `live` is what the quota looks at.
CREATE TABLE tenant_count (
    tenant bigint NOT NULL PRIMARY KEY REFERENCES tenant (id),
    live bigint NOT NULL DEFAULT 0 CHECK (live >= 0),
    completed bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    cancelled bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- What a tenant spent on a UTC day; `day` counts from 1970-01-01.
CREATE TABLE usage (
    tenant bigint NOT NULL REFERENCES tenant (id),
    day bigint NOT NULL,
    attempts bigint NOT NULL,
    completed bigint NOT NULL,
    failed bigint NOT NULL,
    fuel_used numeric NOT NULL,
    guest_us bigint NOT NULL,
    PRIMARY KEY (tenant, day)
) WITH (fillfactor = 50);

CREATE TABLE plugin (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant bigint NOT NULL REFERENCES tenant (id),
    name text NOT NULL,
    -- The `plugin_version` that new attempts run.
    current bigint,
    -- True when no new task can name it; its versions stay for the attempts that name them.
    removed boolean NOT NULL DEFAULT false,
    UNIQUE (tenant, name)
);

-- Immutable: a name stands for the same bytes and the same manifest for ever.
CREATE TABLE plugin_version (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant bigint NOT NULL REFERENCES tenant (id),
    plugin bigint NOT NULL REFERENCES plugin (id),
    name text NOT NULL,
    -- SHA-256 of the component, whose bytes are in `component`.
    digest bytea NOT NULL,
    component_bytes bigint NOT NULL,
    -- `core::manifest::Manifest` as JSON.
    manifest text NOT NULL,
    installed_ms bigint NOT NULL,
    UNIQUE (plugin, name)
);

-- Every kind that a plugin ever had.
CREATE TABLE kind (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant bigint NOT NULL REFERENCES tenant (id),
    plugin bigint NOT NULL REFERENCES plugin (id),
    name text NOT NULL,
    UNIQUE (plugin, name),
    UNIQUE (tenant, id)
);

-- Components by digest. Bytes that do not shrink are not tried to.
CREATE TABLE component (
    digest bytea NOT NULL PRIMARY KEY,
    bytes bytea NOT NULL
);
ALTER TABLE component ALTER COLUMN bytes SET STORAGE EXTERNAL;

-- Incarnations of hosts. A task's lease is its holder's: one row is beaten, not one per task. The row is deleted when
-- the holder closes or is rescued, so a late beat finds nothing.
CREATE TABLE holder (
    id bigint NOT NULL PRIMARY KEY,
    opened_ms bigint NOT NULL,
    until_ms bigint NOT NULL
) WITH (fillfactor = 50);

-- Live tasks only: pending without a holder, running with one.
--
-- No index looks at the holder or the token, so a lease rewrites the row in its page and touches no index (a heap-only
-- update); half of a page is kept free for that.
CREATE TABLE task (
    id bigint NOT NULL PRIMARY KEY,
    tenant bigint NOT NULL,
    kind bigint NOT NULL,
    -- Grows with every lease and every cancel, also over a retry by hand.
    token bigint NOT NULL DEFAULT 0,
    holder bigint,
    created_ms bigint NOT NULL,
    run_at_ms bigint NOT NULL,
    root bigint NOT NULL,
    parent bigint,
    -- Attempts used up, and how many of them ended by their deadline, since the submit or the last retry by hand.
    attempts integer NOT NULL DEFAULT 0,
    deadlines integer NOT NULL DEFAULT 0,
    crashes integer NOT NULL DEFAULT 0,
    -- Attempts before the last retry by hand: numbers of kept attempts go on from here.
    earlier integer NOT NULL DEFAULT 0,
    depth integer NOT NULL DEFAULT 0,
    -- `core::policy::BudgetRequest` as JSON; NULL when it asks for nothing.
    budget text,
    trace text,
    -- NULL is application/json.
    input_type text,
    input bytea NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);

-- What a lease walks: tenant by tenant, oldest run_at first, then oldest id. The one index of the queue.
CREATE INDEX task_ready ON task (tenant, run_at_ms, id);

-- Ended tasks: completed (2), failed (3) and cancelled (4), with the attempt that ended them.
CREATE TABLE finished (
    id bigint NOT NULL,
    tenant bigint NOT NULL,
    kind bigint NOT NULL,
    state smallint NOT NULL CHECK (state IN (2, 3, 4)),
    token bigint NOT NULL,
    attempts integer NOT NULL,
    crashes integer NOT NULL,
    earlier integer NOT NULL,
    depth integer NOT NULL,
    created_ms bigint NOT NULL,
    run_at_ms bigint NOT NULL,
    finished_ms bigint NOT NULL,
    root bigint NOT NULL,
    parent bigint,
    -- The attempt that ended it, number `earlier + attempts`; all NULL when no attempt did.
    started_ms bigint,
    version bigint,
    fuel_used bigint,
    memory_bytes_peak bigint,
    host_calls bigint,
    elapsed_us bigint,
    taint integer,
    effects integer,
    -- Why it failed; `detail` is the limit, the backtrace and the plugin's retry wish as JSON, NULL when there is none.
    code text,
    message text,
    detail text,
    -- What a retry by hand needs; NULL when it completed.
    budget text,
    trace text,
    input_type text,
    -- NULL is application/json.
    result_type text,
    input bytea,
    result bytea,
    -- Lists, too: a tenant's tasks by id.
    PRIMARY KEY (tenant, id)
);

-- The few that did not complete, which people look for.
CREATE INDEX finished_incomplete ON finished (tenant, id) WHERE state <> 2;

CREATE INDEX finished_parent ON finished (parent, id) WHERE parent IS NOT NULL;

-- Attempts that did not end their task: retried ones, and the last one before a retry by hand.
CREATE TABLE attempt (
    task bigint NOT NULL,
    number integer NOT NULL,
    tenant bigint NOT NULL,
    started_ms bigint NOT NULL,
    version bigint,
    fuel_used bigint NOT NULL,
    memory_bytes_peak bigint NOT NULL,
    host_calls bigint NOT NULL,
    elapsed_us bigint NOT NULL,
    taint integer NOT NULL,
    effects integer NOT NULL,
    code text,
    message text,
    detail text,
    PRIMARY KEY (task, number)
);

-- Logs of attempts, encoded by `core::log`.
CREATE TABLE attempt_log (
    task bigint NOT NULL,
    attempt integer NOT NULL,
    tenant bigint NOT NULL,
    bytes bytea NOT NULL,
    PRIMARY KEY (task, attempt)
);

-- Keys of submits and what they became. A key is one submit's until it expires.
CREATE TABLE idempotency (
    tenant bigint NOT NULL,
    key text NOT NULL,
    first bigint NOT NULL,
    count integer NOT NULL,
    -- BLAKE3 of the body the key came with.
    body bytea NOT NULL,
    expires_ms bigint NOT NULL,
    PRIMARY KEY (tenant, key)
);

CREATE INDEX idempotency_expires ON idempotency (expires_ms);

-- The system's role leads everything; the tenant's role sees its own rows.
DO $$
DECLARE
    relation text;
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO keiko_system, keiko_tenant', current_schema());
    FOREACH relation IN ARRAY ARRAY['sequence', 'tenant', 'tenant_count', 'usage', 'plugin', 'plugin_version', 'kind',
        'component', 'holder', 'task', 'finished', 'attempt', 'attempt_log', 'idempotency'] LOOP
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO keiko_system', relation);
    END LOOP;
    FOREACH relation IN ARRAY ARRAY['tenant_count', 'usage', 'plugin', 'plugin_version', 'kind', 'task', 'finished',
        'attempt', 'attempt_log', 'idempotency'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', relation);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', relation);
        EXECUTE format('CREATE POLICY system ON %I TO keiko_system USING (true) WITH CHECK (true)', relation);
        EXECUTE format('CREATE POLICY tenant ON %I TO keiko_tenant USING (tenant = keiko_tenant_id())', relation);
        EXECUTE format('GRANT SELECT ON %I TO keiko_tenant', relation);
    END LOOP;
END $$;
