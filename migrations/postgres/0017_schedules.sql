-- Schedules: see `core::schedule`. Hosts without one pay for a look at an empty index.

CREATE TABLE schedule (
    tenant bigint NOT NULL REFERENCES tenant (id),
    name text NOT NULL,
    -- When it occurs and what its tasks are, but for their input: `format::StoredSchedule` as JSON.
    definition text NOT NULL,
    -- NULL is application/json.
    input_type text,
    input bytea NOT NULL,
    created_ms bigint NOT NULL,
    -- Since when it is paused.
    paused_ms bigint,
    -- When it occurs next; NULL when it is paused, or never does again.
    next_ms bigint,
    -- The last occurrence that was not missed, its task, and why it has none of its own.
    last_ms bigint,
    last_task bigint,
    last_code text,
    last_message text,
    PRIMARY KEY (tenant, name)
);

CREATE INDEX schedule_next ON schedule (next_ms) WHERE next_ms IS NOT NULL;

GRANT SELECT, INSERT, UPDATE, DELETE ON schedule TO keiko_system;
GRANT SELECT ON schedule TO keiko_tenant;
ALTER TABLE schedule ENABLE ROW LEVEL SECURITY;
ALTER TABLE schedule FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON schedule TO keiko_system USING (true) WITH CHECK (true);
CREATE POLICY tenant ON schedule TO keiko_tenant USING (tenant = keiko_tenant_id());
