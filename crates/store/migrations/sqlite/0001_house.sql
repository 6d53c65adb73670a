-- Ids are prefixed text, instants are milliseconds since the epoch, JSON is
-- text: the dialect that SQLite and Postgres share.

CREATE TABLE accounts (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  email TEXT,
  created_at BIGINT NOT NULL
);

-- Subjects of foreign token issuers.
CREATE TABLE identities (
  issuer TEXT NOT NULL,
  subject TEXT NOT NULL,
  account_id TEXT NOT NULL REFERENCES accounts (id),
  PRIMARY KEY (issuer, subject)
);

CREATE TABLE api_keys (
  id TEXT PRIMARY KEY,
  account_id TEXT NOT NULL REFERENCES accounts (id),
  name TEXT NOT NULL,
  -- SHA-256 of the key, in hex. The key itself is shown once and kept nowhere.
  hash TEXT NOT NULL UNIQUE,
  created_at BIGINT NOT NULL,
  expires_at BIGINT,
  revoked_at BIGINT
);
CREATE INDEX api_keys_of_account ON api_keys (account_id, created_at);

CREATE TABLE organizations (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  created_at BIGINT NOT NULL
);

CREATE TABLE organization_members (
  org_id TEXT NOT NULL REFERENCES organizations (id),
  account_id TEXT NOT NULL REFERENCES accounts (id),
  PRIMARY KEY (org_id, account_id)
);

-- Repositories that an organization speaks for: 'owner/repo' or 'owner/*', in
-- lower case. One repository may be claimed once.
CREATE TABLE organization_claims (
  pattern TEXT PRIMARY KEY,
  org_id TEXT NOT NULL REFERENCES organizations (id)
);

CREATE TABLE sessions (
  id TEXT PRIMARY KEY,
  account_id TEXT NOT NULL REFERENCES accounts (id),
  title TEXT NOT NULL,
  status TEXT NOT NULL,
  clone_url TEXT,
  branch TEXT,
  -- NULL until the first sandbox is ready.
  sandbox_name TEXT,
  lifecycle_state TEXT,
  -- Grows with every change of this row; writes name the version they read.
  lifecycle_version BIGINT NOT NULL,
  lifecycle_error TEXT,
  last_activity_at BIGINT,
  hibernate_after BIGINT,
  sandbox_expires_at BIGINT,
  lines_added BIGINT,
  lines_removed BIGINT,
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL
);
CREATE INDEX sessions_of_account ON sessions (account_id, created_at);
CREATE INDEX sessions_due ON sessions (hibernate_after) WHERE lifecycle_state = 'active';
CREATE INDEX sessions_unfinished ON sessions (updated_at)
  WHERE lifecycle_state IN ('hibernating', 'restoring');

-- Base images: immutable EROFS files, named by their digest.
CREATE TABLE images (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  -- SHA-256 of the file, in hex.
  digest TEXT NOT NULL,
  size_bytes BIGINT NOT NULL,
  -- JSON: environment, working directory and user of every command.
  config TEXT NOT NULL,
  -- What it was built from; shown to users, never interpreted.
  source TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  -- Since then another image has the name; this one stays for its sandboxes.
  replaced_at BIGINT
);
CREATE UNIQUE INDEX images_by_name ON images (name) WHERE replaced_at IS NULL;
CREATE INDEX images_replaced ON images (replaced_at) WHERE replaced_at IS NOT NULL;
CREATE INDEX images_by_digest ON images (digest);

CREATE TABLE sandboxes (
  id TEXT PRIMARY KEY,
  namespace TEXT NOT NULL,
  name TEXT NOT NULL,
  persistent BOOLEAN NOT NULL,
  image_id TEXT NOT NULL REFERENCES images (id),
  -- JSON: resources, env, tags, network policy, timeout.
  config TEXT NOT NULL,
  -- The snapshot that a fork copies, and that a run without volume starts from.
  current_snapshot TEXT,
  -- Its files. NULL: the next run makes a volume, from current_snapshot if
  -- there is one.
  volume_id TEXT,
  -- The last snapshot whose files the volume continues.
  descends_from TEXT,
  -- Bytes below the volume: the image, and what the snapshot held that the
  -- volume was copied from.
  base_bytes BIGINT NOT NULL,
  -- Runs that these files have seen, those before a copy included.
  boots BIGINT NOT NULL,
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL,
  -- When the status of the newest run last changed.
  status_updated_at BIGINT NOT NULL,
  UNIQUE (namespace, name)
);
CREATE INDEX sandboxes_by_age ON sandboxes (namespace, created_at);
CREATE INDEX sandboxes_by_status ON sandboxes (namespace, status_updated_at, id);
CREATE INDEX sandboxes_by_snapshot ON sandboxes (current_snapshot) WHERE current_snapshot IS NOT NULL;
CREATE INDEX sandboxes_by_image ON sandboxes (image_id);
CREATE UNIQUE INDEX sandboxes_by_volume ON sandboxes (volume_id) WHERE volume_id IS NOT NULL;

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

CREATE TABLE runs (
  id TEXT PRIMARY KEY,
  sandbox_id TEXT NOT NULL,
  -- Copied from the sandbox, so that a run outlives it in lists.
  namespace TEXT NOT NULL,
  sandbox_name TEXT NOT NULL,
  status TEXT NOT NULL,
  config TEXT NOT NULL,
  source_snapshot TEXT,
  volume_id TEXT NOT NULL,
  -- Host process: pid and start time (clock ticks since boot) name it.
  pid BIGINT,
  pid_start BIGINT,
  boot_id TEXT,
  slot BIGINT,
  timeout_ms BIGINT NOT NULL,
  expires_at BIGINT,
  requested_at BIGINT NOT NULL,
  started_at BIGINT,
  stop_requested_at BIGINT,
  stopped_at BIGINT,
  stop_reason TEXT,
  -- JSON: what becomes of its files, decided before its processes end.
  ending TEXT,
  -- JSON array: what did not go as it should and did not keep it from starting.
  warnings TEXT NOT NULL DEFAULT '[]',
  updated_at BIGINT NOT NULL
);
-- Invariant 1: a sandbox has at most one live run, whatever races or crashes.
CREATE UNIQUE INDEX one_live_run ON runs (sandbox_id)
  WHERE status IN ('pending', 'running', 'stopping', 'snapshotting');
CREATE INDEX runs_of_sandbox ON runs (sandbox_id, requested_at);
CREATE INDEX runs_by_age ON runs (namespace, requested_at);
CREATE INDEX runs_live_by_volume ON runs (volume_id)
  WHERE status IN ('pending', 'running', 'stopping', 'snapshotting');

CREATE TABLE snapshots (
  id TEXT PRIMARY KEY,
  namespace TEXT NOT NULL,
  sandbox_id TEXT NOT NULL,
  sandbox_name TEXT NOT NULL,
  source_run TEXT NOT NULL,
  -- The image below it.
  image_id TEXT NOT NULL,
  kind TEXT NOT NULL,
  status TEXT NOT NULL,
  -- Bytes, those of the image included.
  size_bytes BIGINT NOT NULL,
  -- Runs that its files have seen.
  boots BIGINT NOT NULL,
  parent TEXT,
  -- How long it stays after its last use; NULL: until it is deleted.
  expiration_ms BIGINT,
  expires_at BIGINT,
  last_used_at BIGINT,
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL
);
CREATE INDEX snapshots_of_sandbox ON snapshots (sandbox_id, created_at);
CREATE INDEX snapshots_by_age ON snapshots (namespace, id);
CREATE INDEX snapshots_by_parent ON snapshots (parent, id);
CREATE INDEX snapshots_by_image ON snapshots (image_id) WHERE status = 'created';
CREATE INDEX snapshots_due ON snapshots (expires_at) WHERE status = 'created' AND expires_at IS NOT NULL;

-- Files that nothing refers to any more and that are still on disk. A row is
-- written in the transaction that takes the last reference away, and goes when
-- the files are gone.
CREATE TABLE garbage (
  -- 'volume', 'snapshot' or 'image'.
  kind TEXT NOT NULL,
  -- Id of the volume or snapshot, digest of the image.
  name TEXT NOT NULL,
  since BIGINT NOT NULL,
  PRIMARY KEY (kind, name)
);
CREATE INDEX garbage_by_age ON garbage (since);
