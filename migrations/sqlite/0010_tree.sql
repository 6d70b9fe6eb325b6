-- Trees of tasks: see `core::tree`. Tasks without children do not pay for them.

-- A tree has the number of its root, and is forgotten with it.
CREATE TABLE tree (
    root INTEGER NOT NULL PRIMARY KEY,
    tenant INTEGER NOT NULL REFERENCES tenant (id),
    -- What all of it may spend, and has spent.
    fuel_max INTEGER NOT NULL,
    host_calls_max INTEGER NOT NULL,
    fuel_used INTEGER NOT NULL,
    host_calls_used INTEGER NOT NULL,
    -- When its time is over; NULL is never.
    end_ms INTEGER
) STRICT;
