-- Processors and what waits for them: items, batches, dead letters, kept rows. A payload's type is NULL for
-- application/json; a `size` is what the item counts towards limits in bytes.

CREATE TABLE processor (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant bigint NOT NULL REFERENCES tenant (id),
    name text NOT NULL,
    -- Since when nothing is handed to it, and why; NULL while it works.
    stopped_ms bigint,
    -- The `plugin_version` that failed; NULL when the host's own did.
    stopped_version bigint,
    code text,
    message text,
    detail text,
    UNIQUE (tenant, name)
) WITH (fillfactor = 50);

-- Items that wait or are in a batch. Written once, with their producer, and deleted when their end is written: which
-- batch has them stands in the batch, so that neither forming one nor taking it over rewrites a payload.
CREATE TABLE batch_item (
    id bigint NOT NULL PRIMARY KEY,
    tenant bigint NOT NULL,
    processor bigint NOT NULL,
    -- Empty for an item that names none.
    key text NOT NULL,
    -- Its place among the items of its key: its id, or the id that an item had which is added when it is due again.
    place bigint NOT NULL,
    created_ms bigint NOT NULL,
    -- Not before this time.
    due_ms bigint NOT NULL,
    -- Times it was handed over.
    attempts integer NOT NULL DEFAULT 0,
    size bigint NOT NULL,
    type text,
    bytes bytea NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);

-- What a batch is formed along.
CREATE INDEX batch_item_group ON batch_item (processor, key, place);

-- Batches that a host works, or worked when it died: then `holder` has no row, and another host takes it over under the
-- same id. Forming one locks its processor's row, so that no item is in two.
CREATE TABLE batch (
    id bigint NOT NULL PRIMARY KEY,
    tenant bigint NOT NULL,
    processor bigint NOT NULL,
    key text NOT NULL,
    -- Whether it is the one batch of its key.
    ordered boolean NOT NULL,
    holder bigint NOT NULL,
    token bigint NOT NULL,
    -- Times it was handed over when its host died.
    crashes integer NOT NULL DEFAULT 0,
    formed_ms bigint NOT NULL,
    -- The ids of its items in order.
    items bigint[] NOT NULL
);

CREATE INDEX batch_group ON batch (processor, key);
CREATE UNIQUE INDEX batch_ordered ON batch (processor, key) WHERE ordered;

-- Items that no processor could take.
CREATE TABLE dead_letter (
    id bigint NOT NULL,
    tenant bigint NOT NULL,
    processor bigint NOT NULL,
    key text NOT NULL,
    created_ms bigint NOT NULL,
    dead_ms bigint NOT NULL,
    attempts integer NOT NULL,
    size bigint NOT NULL,
    type text,
    bytes bytea NOT NULL,
    -- As in `finished`.
    code text NOT NULL,
    message text NOT NULL,
    detail text,
    PRIMARY KEY (tenant, processor, id)
);

-- Items that a processor of the host keeps.
CREATE TABLE batch_row (
    id bigint NOT NULL,
    tenant bigint NOT NULL,
    processor bigint NOT NULL,
    key text NOT NULL,
    created_ms bigint NOT NULL,
    type text,
    bytes bytea NOT NULL,
    PRIMARY KEY (tenant, processor, id)
);

-- What waits of a tenant or is in a batch: equal to a recount at every commit, and what the quota looks at.
CREATE TABLE batch_count (
    tenant bigint NOT NULL PRIMARY KEY REFERENCES tenant (id),
    items bigint NOT NULL DEFAULT 0 CHECK (items >= 0),
    bytes bigint NOT NULL DEFAULT 0 CHECK (bytes >= 0)
) WITH (fillfactor = 50);

DO $$
DECLARE
    relation text;
BEGIN
    FOREACH relation IN ARRAY ARRAY['processor', 'batch_item', 'batch', 'dead_letter', 'batch_row', 'batch_count'] LOOP
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO keiko_system', relation);
        EXECUTE format('GRANT SELECT ON %I TO keiko_tenant', relation);
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', relation);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', relation);
        EXECUTE format('CREATE POLICY system ON %I TO keiko_system USING (true) WITH CHECK (true)', relation);
        EXECUTE format('CREATE POLICY tenant ON %I TO keiko_tenant USING (tenant = keiko_tenant_id())', relation);
    END LOOP;
END $$;
