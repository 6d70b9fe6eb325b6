-- The history of each plugin: one row for every swap of its current version. A host of the release before this one swaps
-- without a row; its swap is passed over by a rollback and has no number.
CREATE TABLE plugin_generation (
    plugin bigint NOT NULL REFERENCES plugin (id),
    -- From 1, without gaps.
    generation bigint NOT NULL,
    tenant bigint NOT NULL,
    -- The `plugin_version` that new attempts ran from then on.
    version bigint NOT NULL,
    -- `core::catalog::Cause`.
    cause smallint NOT NULL,
    at_ms bigint NOT NULL,
    -- The generation that a rollback goes back to; NULL when there is none.
    before bigint,
    PRIMARY KEY (plugin, generation)
);

INSERT INTO plugin_generation (plugin, generation, tenant, version, cause, at_ms)
SELECT p.id, 1, p.tenant, p.current, 0, v.installed_ms
FROM plugin AS p JOIN plugin_version AS v ON v.id = p.current;

-- True while a plugin waits for its last live task before it is removed.
ALTER TABLE plugin ADD COLUMN draining boolean NOT NULL DEFAULT false;

GRANT SELECT, INSERT, UPDATE, DELETE ON plugin_generation TO keiko_system;
GRANT SELECT ON plugin_generation TO keiko_tenant;
ALTER TABLE plugin_generation ENABLE ROW LEVEL SECURITY;
ALTER TABLE plugin_generation FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON plugin_generation TO keiko_system USING (true) WITH CHECK (true);
CREATE POLICY tenant ON plugin_generation TO keiko_tenant USING (tenant = keiko_tenant_id());
