-- The cache's entries, and what tells them from another database's.

-- One row: the random name of this database, by which its entries are known where several share a server.
CREATE TABLE installation (
    name text NOT NULL
);

INSERT INTO installation (name) VALUES (substr(md5(random()::text || clock_timestamp()::text), 1, 16));

-- Envelopes of `core::cache`. Not logged: a crash of the database empties the cache, which costs time and no task.
CREATE UNLOGGED TABLE cache (
    tenant bigint NOT NULL,
    namespace text NOT NULL,
    key text NOT NULL,
    -- Whether it notes the removal of a tag, and so must outlive what has the tag.
    marker boolean NOT NULL,
    -- When it was made, as the envelope says: the newer of two counts.
    stamp bigint NOT NULL,
    until_ms bigint NOT NULL,
    -- Length of `bytes`.
    size integer NOT NULL,
    bytes bytea NOT NULL,
    PRIMARY KEY (tenant, namespace, key)
);
ALTER TABLE cache ALTER COLUMN bytes SET STORAGE EXTERNAL;

-- What is kept no longer, and what is oldest.
CREATE INDEX cache_until ON cache (tenant, until_ms);
CREATE INDEX cache_age ON cache (tenant, stamp) INCLUDE (size) WHERE NOT marker;

-- Who computes a value, while Redis does not say it.
CREATE UNLOGGED TABLE cache_lease (
    tenant bigint NOT NULL,
    namespace text NOT NULL,
    key text NOT NULL,
    owner bigint NOT NULL,
    until_ms bigint NOT NULL,
    PRIMARY KEY (tenant, namespace, key)
);

CREATE INDEX cache_lease_until ON cache_lease (tenant, until_ms);

DO $$
DECLARE
    relation text;
BEGIN
    GRANT SELECT ON installation TO keiko_system;
    FOREACH relation IN ARRAY ARRAY['cache', 'cache_lease'] LOOP
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO keiko_system, keiko_tenant', relation);
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', relation);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', relation);
        EXECUTE format('CREATE POLICY system ON %I TO keiko_system USING (true) WITH CHECK (true)', relation);
        EXECUTE format('CREATE POLICY tenant ON %I TO keiko_tenant USING (tenant = keiko_tenant_id())
            WITH CHECK (tenant = keiko_tenant_id())', relation);
    END LOOP;
END $$;
