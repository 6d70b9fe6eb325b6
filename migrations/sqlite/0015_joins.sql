-- Joins: see `core::join`. 1 when the task with the number behind the group's last one is held until all of them have
-- ended.
ALTER TABLE task_group ADD COLUMN joined INTEGER NOT NULL DEFAULT 0;
