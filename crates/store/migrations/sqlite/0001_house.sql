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

CREATE TABLE images (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  -- JSON array of layer ids, bottom first.
  layers TEXT NOT NULL,
  -- What it was built from, for people.
  source TEXT NOT NULL,
  size_bytes BIGINT NOT NULL,
  created_at BIGINT NOT NULL
);

CREATE TABLE sandboxes (
  id TEXT PRIMARY KEY,
  namespace TEXT NOT NULL,
  name TEXT NOT NULL,
  persistent BOOLEAN NOT NULL,
  image_id TEXT NOT NULL REFERENCES images (id),
  -- JSON: resources, env, tags, network policy, timeout.
  config TEXT NOT NULL,
  current_snapshot TEXT,
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL,
  UNIQUE (namespace, name)
);
CREATE INDEX sandboxes_by_age ON sandboxes (namespace, created_at);

CREATE TABLE runs (
  id TEXT PRIMARY KEY,
  sandbox_id TEXT NOT NULL,
  -- Copied from the sandbox, so that a run outlives it in lists.
  namespace TEXT NOT NULL,
  sandbox_name TEXT NOT NULL,
  status TEXT NOT NULL,
  config TEXT NOT NULL,
  source_snapshot TEXT,
  -- JSON array of layer ids that this run stands on, bottom first.
  layers TEXT NOT NULL,
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
  updated_at BIGINT NOT NULL
);
-- Invariant 1: a sandbox has at most one live run, whatever races or crashes.
CREATE UNIQUE INDEX one_live_run ON runs (sandbox_id)
  WHERE status IN ('pending', 'running', 'stopping', 'snapshotting');
CREATE INDEX runs_of_sandbox ON runs (sandbox_id, requested_at);
CREATE INDEX runs_by_age ON runs (namespace, requested_at);

CREATE TABLE layers (
  id TEXT PRIMARY KEY,
  size_bytes BIGINT,
  created_at BIGINT NOT NULL
);

CREATE TABLE snapshots (
  id TEXT PRIMARY KEY,
  namespace TEXT NOT NULL,
  sandbox_id TEXT NOT NULL,
  sandbox_name TEXT NOT NULL,
  source_run TEXT NOT NULL,
  kind TEXT NOT NULL,
  status TEXT NOT NULL,
  -- JSON array of layer ids, bottom first.
  layers TEXT NOT NULL,
  parent TEXT,
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL
);
CREATE INDEX snapshots_of_sandbox ON snapshots (sandbox_id, created_at);
