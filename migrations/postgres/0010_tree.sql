-- Trees of tasks: see `core::tree`. Tasks without children do not pay for them.

-- A tree has the number of its root, and is forgotten with it.
CREATE TABLE tree (
    root bigint NOT NULL PRIMARY KEY,
    tenant bigint NOT NULL REFERENCES tenant (id),
    -- What all of it may spend, and has spent.
    fuel_max bigint NOT NULL,
    host_calls_max bigint NOT NULL,
    fuel_used bigint NOT NULL,
    host_calls_used bigint NOT NULL,
    -- When its time is over; NULL is never.
    end_ms bigint
) WITH (fillfactor = 50);

GRANT SELECT, INSERT, UPDATE, DELETE ON tree TO keiko_system;
GRANT SELECT ON tree TO keiko_tenant;
ALTER TABLE tree ENABLE ROW LEVEL SECURITY;
ALTER TABLE tree FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON tree TO keiko_system USING (true) WITH CHECK (true);
CREATE POLICY tenant ON tree TO keiko_tenant USING (tenant = keiko_tenant_id());
