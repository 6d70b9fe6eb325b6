-- Time-outs of whole tasks: see `core::time_out`. Tasks without one do not pay for them.

-- `start_by_ms`: until when its first attempt begins; NULL when it may wait for ever, or one has ended. `end_by_ms`: until
-- when it ends.
ALTER TABLE task ADD COLUMN start_by_ms bigint, ADD COLUMN end_by_ms bigint;

CREATE INDEX task_start_by ON task (start_by_ms) WHERE start_by_ms IS NOT NULL;
CREATE INDEX task_end_by ON task (end_by_ms) WHERE end_by_ms IS NOT NULL;
