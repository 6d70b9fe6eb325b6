-- Canaries: see `core::canary`. The last one of each plugin, which a swap ends: then the plugin's latest generation is another.
CREATE TABLE plugin_canary (
    plugin INTEGER PRIMARY KEY REFERENCES plugin (id),
    tenant INTEGER NOT NULL,
    -- The `plugin_version` that tasks try.
    version INTEGER NOT NULL,
    -- The generation that it is compared with.
    generation INTEGER NOT NULL,
    percent INTEGER NOT NULL,
    -- `core::canary::State`.
    state INTEGER NOT NULL,
    -- Tasks that were let in, and when the last of them was.
    touched INTEGER NOT NULL,
    touched_ms INTEGER NOT NULL,
    -- Since when it is in its state.
    since_ms INTEGER NOT NULL,
    -- `core::canary::Trial` as JSON.
    trial TEXT NOT NULL,
    -- Why a task failed on it last.
    failure TEXT
) STRICT;
