-- How far along its group a batch reaches, so that whoever walks on behind that need not look at its items. NULL for a batch
-- that an earlier release formed.
ALTER TABLE batch ADD COLUMN last_place bigint;

-- To compress the numbers of a batch takes longer than to write and read them, once each.
ALTER TABLE batch ALTER COLUMN items SET STORAGE EXTERNAL;
