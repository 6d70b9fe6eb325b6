-- Time-outs of whole tasks: see `core::time_out`. Tasks without one do not pay for them.

-- Until when its first attempt begins; NULL when it may wait for ever, or one has ended.
ALTER TABLE task ADD COLUMN start_by_ms INTEGER;
-- Until when it ends.
ALTER TABLE task ADD COLUMN end_by_ms INTEGER;

CREATE INDEX task_start_by ON task (start_by_ms) WHERE start_by_ms IS NOT NULL;
CREATE INDEX task_end_by ON task (end_by_ms) WHERE end_by_ms IS NOT NULL;
