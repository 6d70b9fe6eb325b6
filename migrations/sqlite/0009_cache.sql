-- The cache's entries are in a file of their own; this is what tells them from another database's.

-- One row: the random name of this database, by which its entries are known where several share a server.
CREATE TABLE installation (
    name TEXT NOT NULL
) STRICT;

INSERT INTO installation (name) VALUES (lower(hex(randomblob(8))));
