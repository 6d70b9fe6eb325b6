-- Priorities of tasks: see `core::priority`. A task's `run_at_ms` is its place in the queue from now on, which for most is
-- when it comes due.

-- `priority`: 1 to 9; NULL is 0, the ordinary one. `due_ms`: when a task with a priority comes due; NULL when it stands at
-- that time anyway.
ALTER TABLE task ADD COLUMN priority smallint CHECK (priority BETWEEN 1 AND 9), ADD COLUMN due_ms bigint;
ALTER TABLE finished ADD COLUMN priority smallint;

-- Tasks with a priority that have not taken their place: a lease looks which of them have come due.
CREATE INDEX task_raise ON task (due_ms) WHERE run_at_ms = due_ms;
