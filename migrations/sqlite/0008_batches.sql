-- Processors and what waits for them: items, batches, dead letters, kept rows. A payload's type is NULL for
-- application/json; a `size` is what the item counts towards limits in bytes.

CREATE TABLE processor (
    id INTEGER NOT NULL PRIMARY KEY,
    tenant INTEGER NOT NULL REFERENCES tenant (id),
    name TEXT NOT NULL,
    -- Since when nothing is handed to it, and why; NULL while it works.
    stopped_ms INTEGER,
    -- The `plugin_version` that failed; NULL when the host's own did.
    stopped_version INTEGER,
    code TEXT,
    message TEXT,
    detail TEXT,
    UNIQUE (tenant, name)
) STRICT;

-- Items that wait or are in a batch. Written once, with their producer, and deleted when their end is written.
CREATE TABLE batch_item (
    id INTEGER NOT NULL PRIMARY KEY,
    tenant INTEGER NOT NULL,
    processor INTEGER NOT NULL,
    -- Empty for an item that names none.
    key TEXT NOT NULL,
    -- Its place among the items of its key: its id, or the id that an item had which is added when it is due again.
    place INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    -- Not before this time.
    due_ms INTEGER NOT NULL,
    -- Times it was handed over.
    attempts INTEGER NOT NULL DEFAULT 0,
    size INTEGER NOT NULL,
    type TEXT,
    bytes BLOB NOT NULL
) STRICT;

-- What a batch is formed along.
CREATE INDEX batch_item_group ON batch_item (processor, key, place);

-- Batches that a host works, or worked when it died: then `holder` has no row, and another host takes it over under the
-- same id.
CREATE TABLE batch (
    id INTEGER NOT NULL PRIMARY KEY,
    tenant INTEGER NOT NULL,
    processor INTEGER NOT NULL,
    key TEXT NOT NULL,
    -- 1 when it is the one batch of its key.
    ordered INTEGER NOT NULL,
    holder INTEGER NOT NULL,
    token INTEGER NOT NULL,
    -- Times it was handed over when its host died.
    crashes INTEGER NOT NULL DEFAULT 0,
    formed_ms INTEGER NOT NULL,
    -- The ids of its items in order, as a JSON array.
    items TEXT NOT NULL
) STRICT;

CREATE INDEX batch_group ON batch (processor, key);
CREATE UNIQUE INDEX batch_ordered ON batch (processor, key) WHERE ordered = 1;

-- Items that no processor could take.
CREATE TABLE dead_letter (
    id INTEGER NOT NULL PRIMARY KEY,
    tenant INTEGER NOT NULL,
    processor INTEGER NOT NULL,
    key TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    dead_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    size INTEGER NOT NULL,
    type TEXT,
    bytes BLOB NOT NULL,
    -- As in `finished`.
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    detail TEXT
) STRICT;

CREATE INDEX dead_letter_processor ON dead_letter (tenant, processor);

-- Items that a processor of the host keeps.
CREATE TABLE batch_row (
    id INTEGER NOT NULL PRIMARY KEY,
    tenant INTEGER NOT NULL,
    processor INTEGER NOT NULL,
    key TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    type TEXT,
    bytes BLOB NOT NULL
) STRICT;

CREATE INDEX batch_row_processor ON batch_row (tenant, processor);

-- What waits of a tenant or is in a batch: equal to a recount at every commit, and what the quota looks at.
CREATE TABLE batch_count (
    tenant INTEGER NOT NULL PRIMARY KEY REFERENCES tenant (id),
    items INTEGER NOT NULL DEFAULT 0 CHECK (items >= 0),
    bytes INTEGER NOT NULL DEFAULT 0 CHECK (bytes >= 0)
) STRICT;
