-- Items that were added together, as one row: all of one group, added at one time, and handed over to nobody yet. What
-- becomes of one of them alone makes it a row of `batch_item`. An earlier release sees none of them.
CREATE TABLE batch_segment (
    -- The id of its first item, and its place among the items of its key.
    id bigint NOT NULL PRIMARY KEY,
    -- The id of its last item.
    last_id bigint NOT NULL,
    tenant bigint NOT NULL,
    processor bigint NOT NULL,
    -- Empty for items that name none.
    key text NOT NULL,
    -- When they were added, which is when they are due.
    created_ms bigint NOT NULL,
    item_count bigint NOT NULL,
    -- What they count towards limits in bytes.
    size bigint NOT NULL,
    -- Their ids, types and payloads, in a form of our own.
    items bytea NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, toast_tuple_target = 8160);

-- Written once and read once: to compress it takes longer, and what fits into a page stays there.
ALTER TABLE batch_segment ALTER COLUMN items SET STORAGE EXTERNAL;

-- What a batch is formed along.
CREATE INDEX batch_segment_group ON batch_segment (processor, key, id);

-- The ids of the segments of a batch in order; NULL for a batch that an earlier release formed.
ALTER TABLE batch ADD COLUMN segments bigint[];

GRANT SELECT, INSERT, UPDATE, DELETE ON batch_segment TO keiko_system;
GRANT SELECT ON batch_segment TO keiko_tenant;
ALTER TABLE batch_segment ENABLE ROW LEVEL SECURITY;
ALTER TABLE batch_segment FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON batch_segment TO keiko_system USING (true) WITH CHECK (true);
CREATE POLICY tenant ON batch_segment TO keiko_tenant USING (tenant = keiko_tenant_id());
