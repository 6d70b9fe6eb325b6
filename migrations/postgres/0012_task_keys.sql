-- Keys of kinds: see `core::once`. Tasks without one do not pay for them.

-- The task that a key of a kind stands for: the one that was submitted under it last, live or ended.
CREATE TABLE task_key (
    tenant bigint NOT NULL,
    kind bigint NOT NULL,
    key text NOT NULL,
    task bigint NOT NULL,
    -- When it is or was due.
    due_ms bigint NOT NULL,
    -- When the key may be forgotten, if its task has ended by then.
    expires_ms bigint NOT NULL,
    PRIMARY KEY (tenant, kind, key)
);

CREATE INDEX task_key_expires ON task_key (expires_ms);

GRANT SELECT, INSERT, UPDATE, DELETE ON task_key TO keiko_system;
GRANT SELECT ON task_key TO keiko_tenant;
ALTER TABLE task_key ENABLE ROW LEVEL SECURITY;
ALTER TABLE task_key FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON task_key TO keiko_system USING (true) WITH CHECK (true);
CREATE POLICY tenant ON task_key TO keiko_tenant USING (tenant = keiko_tenant_id());
