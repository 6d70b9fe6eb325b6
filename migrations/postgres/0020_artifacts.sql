-- Machine code of components, for hosts of this database that would make the same: equal processors, equal builds, one cluster key. It
-- is not believed for being here. Not logged: after a crash of the database whoever needs some and has none compiles again.
CREATE UNLOGGED TABLE artifact (
    digest bytea NOT NULL REFERENCES component (digest) ON DELETE CASCADE,
    -- A hash, under the cluster key, of everything that must match.
    name bytea NOT NULL,
    -- Grows: of each component the last few are kept.
    number bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    bytes bytea NOT NULL,
    PRIMARY KEY (digest, name)
);
ALTER TABLE artifact ALTER COLUMN bytes SET STORAGE EXTERNAL;

GRANT SELECT, INSERT, UPDATE, DELETE ON artifact TO keiko_system;
