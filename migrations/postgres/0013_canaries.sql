-- Canaries: see `core::canary`. The last one of each plugin, which a swap ends: then the plugin's latest generation is another.
CREATE TABLE plugin_canary (
    plugin bigint PRIMARY KEY REFERENCES plugin (id),
    tenant bigint NOT NULL,
    -- The `plugin_version` that tasks try.
    version bigint NOT NULL,
    -- The generation that it is compared with.
    generation bigint NOT NULL,
    percent smallint NOT NULL,
    -- `core::canary::State`.
    state smallint NOT NULL,
    -- Tasks that were let in, and when the last of them was.
    touched integer NOT NULL,
    touched_ms bigint NOT NULL,
    -- Since when it is in its state.
    since_ms bigint NOT NULL,
    -- `core::canary::Trial` as JSON.
    trial text NOT NULL,
    -- Why a task failed on it last.
    failure text
);

GRANT SELECT, INSERT, UPDATE, DELETE ON plugin_canary TO keiko_system;
GRANT SELECT ON plugin_canary TO keiko_tenant;
ALTER TABLE plugin_canary ENABLE ROW LEVEL SECURITY;
ALTER TABLE plugin_canary FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON plugin_canary TO keiko_system USING (true) WITH CHECK (true);
CREATE POLICY tenant ON plugin_canary TO keiko_tenant USING (tenant = keiko_tenant_id());
