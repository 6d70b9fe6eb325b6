-- Tasks that an idempotency key stands for where some of them were there before: their numbers do not follow each other.

-- The numbers as JSON, in the order of the submit; without them, `count` from `first` on.
ALTER TABLE idempotency ADD COLUMN ids text;
