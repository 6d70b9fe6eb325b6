-- When a component was put the last time: what no plugin has named for half a day to a day is forgotten. Those that are there count from now.
ALTER TABLE component ADD COLUMN kept_ms bigint NOT NULL DEFAULT (extract(epoch FROM now()) * 1000)::bigint;
