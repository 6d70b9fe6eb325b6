-- How far along its group a batch reaches, so that whoever walks on behind that need not look at its items. NULL for a batch
-- that an earlier release formed.
ALTER TABLE batch ADD COLUMN last_place INTEGER;
