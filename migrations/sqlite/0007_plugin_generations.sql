-- The history of each plugin: one row for every swap of its current version. A host of the release before this one swaps
-- without a row; its swap is passed over by a rollback and has no number.
CREATE TABLE plugin_generation (
    plugin INTEGER NOT NULL REFERENCES plugin (id),
    -- From 1, without gaps.
    generation INTEGER NOT NULL,
    tenant INTEGER NOT NULL,
    -- The `plugin_version` that new attempts ran from then on.
    version INTEGER NOT NULL,
    -- `core::catalog::Cause`.
    cause INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    -- The generation that a rollback goes back to; NULL when there is none.
    before INTEGER,
    PRIMARY KEY (plugin, generation)
) STRICT, WITHOUT ROWID;

INSERT INTO plugin_generation (plugin, generation, tenant, version, cause, at_ms)
SELECT p.id, 1, p.tenant, p.current, 0, v.installed_ms
FROM plugin AS p JOIN plugin_version AS v ON v.id = p.current;

-- 1 while a plugin waits for its last live task before it is removed.
ALTER TABLE plugin ADD COLUMN draining INTEGER NOT NULL DEFAULT 0;
