-- A session that its owner deletes is gone for everybody at once; its sandbox
-- goes, and then the row.
ALTER TABLE sessions ADD COLUMN deleted_at BIGINT;
-- Those that are on their way out, or into the archive.
CREATE INDEX sessions_leaving ON sessions (host_id)
  WHERE deleted_at IS NOT NULL OR (status = 'archived' AND lifecycle_state <> 'archived');

-- What failed is looked at again too.
DROP INDEX sessions_due;
CREATE INDEX sessions_due ON sessions (host_id, due_at) WHERE lifecycle_state IN ('active', 'failed');
