-- Slots: see `core::slot`. Tasks that need none do not pay for them.

-- The key of a task's kind under which few run at once.
ALTER TABLE task ADD COLUMN slot_key text;
ALTER TABLE finished ADD COLUMN slot_key text;

-- Whose a slot is: of the lease of a task under a token, or kept for the lease that comes next. It is free when that lease
-- is over; nobody notes it, and the row goes when somebody looks.
CREATE TABLE slot_use (
    tenant bigint NOT NULL,
    kind bigint NOT NULL,
    -- Empty for the whole kind.
    key text NOT NULL,
    task bigint NOT NULL,
    token bigint NOT NULL,
    PRIMARY KEY (tenant, kind, key, task)
);

-- Tasks that are parked because there was no slot, in their order. One that ended meanwhile stays until its turn comes.
CREATE TABLE slot_wait (
    tenant bigint NOT NULL,
    kind bigint NOT NULL,
    key text NOT NULL,
    place_ms bigint NOT NULL,
    task bigint NOT NULL,
    PRIMARY KEY (tenant, kind, key, place_ms, task)
);

GRANT SELECT, INSERT, UPDATE, DELETE ON slot_use, slot_wait TO keiko_system;
GRANT SELECT ON slot_use, slot_wait TO keiko_tenant;
ALTER TABLE slot_use ENABLE ROW LEVEL SECURITY;
ALTER TABLE slot_use FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON slot_use TO keiko_system USING (true) WITH CHECK (true);
CREATE POLICY tenant ON slot_use TO keiko_tenant USING (tenant = keiko_tenant_id());
ALTER TABLE slot_wait ENABLE ROW LEVEL SECURITY;
ALTER TABLE slot_wait FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON slot_wait TO keiko_system USING (true) WITH CHECK (true);
CREATE POLICY tenant ON slot_wait TO keiko_tenant USING (tenant = keiko_tenant_id());
