-- Pauses: see `core::pause`. A lease looks here; what it finds of a paused kind it parks behind every time.

CREATE TABLE pause (
    tenant INTEGER NOT NULL REFERENCES tenant (id),
    -- 0 is the whole tenant.
    kind INTEGER NOT NULL,
    since_ms INTEGER NOT NULL,
    -- 1 when it is over and parked tasks wait for their places.
    ending INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, kind)
) STRICT, WITHOUT ROWID;
