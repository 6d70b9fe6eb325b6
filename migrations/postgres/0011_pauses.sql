-- Pauses: see `core::pause`. A lease looks here; what it finds of a paused kind it parks behind every time.

CREATE TABLE pause (
    tenant bigint NOT NULL REFERENCES tenant (id),
    -- 0 is the whole tenant.
    kind bigint NOT NULL,
    since_ms bigint NOT NULL,
    -- True when it is over and parked tasks wait for their places.
    ending boolean NOT NULL DEFAULT false,
    PRIMARY KEY (tenant, kind)
);

GRANT SELECT, INSERT, UPDATE, DELETE ON pause TO keiko_system;
GRANT SELECT ON pause TO keiko_tenant;
ALTER TABLE pause ENABLE ROW LEVEL SECURITY;
ALTER TABLE pause FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON pause TO keiko_system USING (true) WITH CHECK (true);
CREATE POLICY tenant ON pause TO keiko_tenant USING (tenant = keiko_tenant_id());
