-- The ended tasks below a root, which a list of its tree looks for. Roots are not in it.
CREATE INDEX finished_root ON finished (root, id) WHERE parent IS NOT NULL;
