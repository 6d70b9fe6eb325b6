-- The live tasks below a root, which a cancel of its tree looks for. Roots are not in it.
CREATE INDEX task_root ON task (root) WHERE parent IS NOT NULL;
