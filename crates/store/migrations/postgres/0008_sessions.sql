-- What a session was made with: for whom, and the branch that its first checkout is to be
-- on. The one that is checked out is `branch`.
ALTER TABLE sessions ADD COLUMN organization_id TEXT;
ALTER TABLE sessions ADD COLUMN wanted_branch TEXT;
ALTER TABLE sessions ADD COLUMN is_new_branch BOOLEAN NOT NULL DEFAULT FALSE;
