-- Priorities of tasks: see `core::priority`. A task's `run_at_ms` is its place in the queue from now on, which for most is
-- when it comes due.

-- 1 to 9; NULL is 0, the ordinary one.
ALTER TABLE task ADD COLUMN priority INTEGER CHECK (priority BETWEEN 1 AND 9);
-- When a task with a priority comes due; NULL when it stands at that time anyway.
ALTER TABLE task ADD COLUMN due_ms INTEGER;
ALTER TABLE finished ADD COLUMN priority INTEGER;

-- Tasks with a priority that have not taken their place: a lease looks which of them have come due.
CREATE INDEX task_raise ON task (due_ms) WHERE run_at_ms = due_ms;
