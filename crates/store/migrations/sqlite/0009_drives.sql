-- Volumes of their own, which sandboxes mount.
CREATE TABLE drives (
  id TEXT PRIMARY KEY,
  owner TEXT NOT NULL,
  project TEXT NOT NULL,
  name TEXT NOT NULL,
  -- Where it is.
  host_id TEXT NOT NULL,
  max_size_bytes BIGINT NOT NULL,
  -- It was mounted once, so that there is something of it on disk.
  made BOOLEAN NOT NULL,
  -- The run that may write to it, as long as that lives.
  attached_run TEXT,
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL,
  UNIQUE (owner, project, name)
);
CREATE INDEX drives_attached ON drives (attached_run);
