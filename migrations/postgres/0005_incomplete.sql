-- Lists of failed and of cancelled tasks, newest first: neither walks over the other's.
DROP INDEX finished_incomplete;
CREATE INDEX finished_incomplete ON finished (tenant, state, id) WHERE state <> 2;
