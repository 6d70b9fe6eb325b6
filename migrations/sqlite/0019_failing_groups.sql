-- Groups that fail fast and go on though one of their tasks has failed, which a rescue looks for: whoever was to cancel the
-- rest may be gone. Mostly there are none.
CREATE INDEX task_group_failing ON task_group (id) WHERE fail_fast AND failed > 0 AND finished_ms IS NULL;
