-- Joins: see `core::join`. True when the task with the number behind the group's last one is held until all of them have
-- ended.
ALTER TABLE task_group ADD COLUMN joined boolean NOT NULL DEFAULT false;
