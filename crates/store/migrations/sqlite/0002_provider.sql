-- Labels, routes, and the life of snapshots.

ALTER TABLE sandboxes ADD COLUMN status_updated_at BIGINT NOT NULL DEFAULT 0;
UPDATE sandboxes SET status_updated_at = updated_at;
CREATE INDEX sandboxes_by_snapshot ON sandboxes (current_snapshot);
CREATE INDEX sandboxes_by_status ON sandboxes (namespace, status_updated_at, id);

-- The labels of `sandboxes.config`, for filters.
CREATE TABLE sandbox_tags (
  sandbox_id TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
  key TEXT NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (sandbox_id, key)
);
CREATE INDEX sandbox_tags_by_value ON sandbox_tags (key, value);

-- The ports of `sandboxes.config`, each with the name that reaches it.
CREATE TABLE routes (
  subdomain TEXT PRIMARY KEY,
  sandbox_id TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
  port BIGINT NOT NULL,
  UNIQUE (sandbox_id, port)
);

-- The image whose layers are the lowest ones.
ALTER TABLE snapshots ADD COLUMN image_id TEXT NOT NULL DEFAULT '';
UPDATE snapshots SET image_id = COALESCE((SELECT image_id FROM sandboxes WHERE sandboxes.id = sandbox_id), '');
-- How long it stays after its last use; NULL: for ever.
ALTER TABLE snapshots ADD COLUMN expiration_ms BIGINT;
ALTER TABLE snapshots ADD COLUMN expires_at BIGINT;
ALTER TABLE snapshots ADD COLUMN last_used_at BIGINT;
CREATE INDEX snapshots_by_age ON snapshots (namespace, id);
CREATE INDEX snapshots_by_parent ON snapshots (parent, id);
CREATE INDEX snapshots_due ON snapshots (expires_at) WHERE status = 'created' AND expires_at IS NOT NULL;
