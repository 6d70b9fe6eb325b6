-- Segments of tasks: see `store::segment::task`. Tasks that are submitted together and are alike are one row until something
-- happens to one of them that does not happen to the others.
CREATE TABLE task_segment (
    -- The number of its first task; the others follow.
    first bigint NOT NULL PRIMARY KEY,
    tenant bigint NOT NULL,
    kind bigint NOT NULL,
    token bigint NOT NULL DEFAULT 0,
    holder bigint,
    created_ms bigint NOT NULL,
    run_at_ms bigint NOT NULL,
    -- A bit for each number from the first on: whether it is no task of the segment, or has left it. How many have not.
    gone bit(128) NOT NULL,
    live integer NOT NULL CHECK (live > 0),
    -- `core::policy::BudgetRequest` as JSON; NULL when they ask for nothing.
    budget text,
    trace text,
    -- Numbers, types and inputs.
    tasks bytea NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);

-- Inputs are not tried to shrink, and large ones stay where they are when a bit changes.
ALTER TABLE task_segment ALTER COLUMN tasks SET STORAGE EXTERNAL;

-- What a lease walks, as in `task`.
CREATE INDEX task_segment_ready ON task_segment (tenant, run_at_ms, first);

GRANT SELECT, INSERT, UPDATE, DELETE ON task_segment TO keiko_system;
GRANT SELECT ON task_segment TO keiko_tenant;
ALTER TABLE task_segment ENABLE ROW LEVEL SECURITY;
ALTER TABLE task_segment FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON task_segment TO keiko_system USING (true) WITH CHECK (true);
CREATE POLICY tenant ON task_segment TO keiko_tenant USING (tenant = keiko_tenant_id());
