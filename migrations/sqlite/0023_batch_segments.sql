-- Items that were added together, as one row: all of one group, added at one time, and handed over to nobody yet. What
-- becomes of one of them alone makes it a row of `batch_item`. An earlier release sees none of them.
CREATE TABLE batch_segment (
    -- The id of its first item, and its place among the items of its key.
    id INTEGER NOT NULL PRIMARY KEY,
    -- The id of its last item.
    last_id INTEGER NOT NULL,
    tenant INTEGER NOT NULL,
    processor INTEGER NOT NULL,
    -- Empty for items that name none.
    key TEXT NOT NULL,
    -- When they were added, which is when they are due.
    created_ms INTEGER NOT NULL,
    item_count INTEGER NOT NULL,
    -- What they count towards limits in bytes.
    size INTEGER NOT NULL,
    -- Their ids, types and payloads, in a form of our own.
    items BLOB NOT NULL
) STRICT;

-- What a batch is formed along.
CREATE INDEX batch_segment_group ON batch_segment (processor, key, id);

-- The segments of a batch in order, as a JSON array of their ids; NULL for a batch that an earlier release formed.
ALTER TABLE batch ADD COLUMN segments TEXT;
