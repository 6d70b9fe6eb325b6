-- Retries by hand of tasks that are to be the only ones: see `core::once`. Tasks without such a key do not pay for it.

-- The key under which it is the only live one of its kind; those of tasks that were there before are not known.
ALTER TABLE task ADD COLUMN unique_key text;
ALTER TABLE finished ADD COLUMN unique_key text;
