-- Groups of tasks: see `core::group`. Tasks of no group do not pay for them.

-- A group has the number of its first task; its tasks have the numbers from there on.
CREATE TABLE task_group (
    id bigint NOT NULL PRIMARY KEY,
    tenant bigint NOT NULL REFERENCES tenant (id),
    -- Its tasks, and what became of them.
    count integer NOT NULL,
    completed integer NOT NULL DEFAULT 0,
    failed integer NOT NULL DEFAULT 0,
    cancelled integer NOT NULL DEFAULT 0,
    -- So many stand in the queue or run at once; NULL is all.
    live_max integer,
    -- True when the rest is cancelled as soon as one has failed.
    fail_fast boolean NOT NULL,
    -- Tasks that are not held, from the first on.
    released integer NOT NULL,
    created_ms bigint NOT NULL,
    finished_ms bigint
) WITH (fillfactor = 50);

ALTER TABLE task ADD COLUMN task_group bigint;
ALTER TABLE finished ADD COLUMN task_group bigint;

GRANT SELECT, INSERT, UPDATE, DELETE ON task_group TO keiko_system;
GRANT SELECT ON task_group TO keiko_tenant;
ALTER TABLE task_group ENABLE ROW LEVEL SECURITY;
ALTER TABLE task_group FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON task_group TO keiko_system USING (true) WITH CHECK (true);
CREATE POLICY tenant ON task_group TO keiko_tenant USING (tenant = keiko_tenant_id());
