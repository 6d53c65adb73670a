-- Ids are prefixed text, instants are milliseconds since the epoch, JSON is
-- text: the dialect that SQLite and Postgres share. The same tables, columns and
-- indexes are in migrations/sqlite; a test compares the two. Text sorts by its
-- bytes there, so it does here (COLLATE "C"), whatever the cluster's locale.

-- Servers with their data directories. A sandbox lives where its current run
-- does, and its files with it.
CREATE TABLE hosts (
  id TEXT COLLATE "C" PRIMARY KEY,
  -- Where its API is reached; shown to whoever asked the wrong one.
  url TEXT COLLATE "C" NOT NULL,
  seen_at BIGINT NOT NULL
);

CREATE TABLE accounts (
  id TEXT COLLATE "C" PRIMARY KEY,
  name TEXT COLLATE "C" NOT NULL,
  email TEXT COLLATE "C",
  created_at BIGINT NOT NULL
);

-- Subjects of foreign token issuers.
CREATE TABLE identities (
  issuer TEXT COLLATE "C" NOT NULL,
  subject TEXT COLLATE "C" NOT NULL,
  account_id TEXT COLLATE "C" NOT NULL REFERENCES accounts (id),
  PRIMARY KEY (issuer, subject)
);

CREATE TABLE api_keys (
  id TEXT COLLATE "C" PRIMARY KEY,
  account_id TEXT COLLATE "C" NOT NULL REFERENCES accounts (id),
  name TEXT COLLATE "C" NOT NULL,
  -- SHA-256 of the key, in hex. The key itself is shown once and kept nowhere.
  hash TEXT COLLATE "C" NOT NULL UNIQUE,
  created_at BIGINT NOT NULL,
  expires_at BIGINT,
  revoked_at BIGINT
);
CREATE INDEX api_keys_of_account ON api_keys (account_id, created_at);

CREATE TABLE organizations (
  id TEXT COLLATE "C" PRIMARY KEY,
  name TEXT COLLATE "C" NOT NULL UNIQUE,
  created_at BIGINT NOT NULL
);

CREATE TABLE organization_members (
  org_id TEXT COLLATE "C" NOT NULL REFERENCES organizations (id),
  account_id TEXT COLLATE "C" NOT NULL REFERENCES accounts (id),
  PRIMARY KEY (org_id, account_id)
);
CREATE INDEX organization_members_by_account ON organization_members (account_id);

-- Repositories that an organization speaks for: 'owner/repo' or 'owner/*', in
-- lower case. One repository may be claimed once.
CREATE TABLE organization_claims (
  pattern TEXT COLLATE "C" PRIMARY KEY,
  org_id TEXT COLLATE "C" NOT NULL REFERENCES organizations (id)
);

CREATE TABLE sessions (
  id TEXT COLLATE "C" PRIMARY KEY,
  account_id TEXT COLLATE "C" NOT NULL REFERENCES accounts (id),
  title TEXT COLLATE "C" NOT NULL,
  status TEXT COLLATE "C" NOT NULL,
  clone_url TEXT COLLATE "C",
  branch TEXT COLLATE "C",
  -- NULL until the first sandbox is ready.
  sandbox_name TEXT COLLATE "C",
  -- Where that lives; empty: every server can deal with it.
  host_id TEXT COLLATE "C" NOT NULL,
  lifecycle_state TEXT COLLATE "C" NOT NULL,
  -- Grows with every change of this row; writes name the version they read.
  lifecycle_version BIGINT NOT NULL,
  lifecycle_error TEXT COLLATE "C",
  last_activity_at BIGINT,
  hibernate_after BIGINT,
  sandbox_expires_at BIGINT,
  -- The earlier of the two, so that one index finds who is due.
  due_at BIGINT,
  lines_added BIGINT,
  lines_removed BIGINT,
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL
);
CREATE INDEX sessions_of_account ON sessions (account_id, created_at, id);
CREATE INDEX sessions_archived ON sessions (account_id) WHERE status = 'archived';
CREATE INDEX sessions_due ON sessions (host_id, due_at) WHERE lifecycle_state = 'active';
CREATE INDEX sessions_unfinished ON sessions (host_id, updated_at)
  WHERE lifecycle_state IN ('hibernating', 'restoring');

-- What one server at a time may do, until it says that it is done or its time
-- is over.
CREATE TABLE leases (
  name TEXT COLLATE "C" PRIMARY KEY,
  host_id TEXT COLLATE "C" NOT NULL,
  -- Who on that host; random.
  holder TEXT COLLATE "C" NOT NULL,
  ends_at BIGINT NOT NULL
);
CREATE INDEX leases_of_host ON leases (host_id);
CREATE INDEX leases_by_end ON leases (ends_at);

-- Work that takes time. The states are drawn in dormouse-jobs.
CREATE TABLE jobs (
  id TEXT COLLATE "C" PRIMARY KEY,
  kind TEXT COLLATE "C" NOT NULL,
  key TEXT COLLATE "C" NOT NULL,
  state TEXT COLLATE "C" NOT NULL,
  -- JSON; only its kind reads it.
  payload TEXT COLLATE "C" NOT NULL,
  -- When it is to run, while it is ready.
  run_at BIGINT NOT NULL,
  -- Asked for again while it ran: when the next one is to run.
  again_at BIGINT,
  -- Who runs it, while it runs.
  host_id TEXT COLLATE "C",
  lease_ends_at BIGINT,
  -- Grows with every claim: a write that names an older one changes nothing.
  token BIGINT NOT NULL,
  -- Claims so far that were neither completed nor put off.
  attempts BIGINT NOT NULL,
  -- The last step that was finished.
  phase TEXT COLLATE "C",
  error TEXT COLLATE "C",
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX one_live_job ON jobs (kind, key) WHERE state IN ('ready', 'running');
CREATE INDEX jobs_ready ON jobs (kind, run_at) WHERE state = 'ready';
CREATE INDEX jobs_running ON jobs (lease_ends_at) WHERE state = 'running';
CREATE INDEX jobs_ended ON jobs (updated_at) WHERE state IN ('done', 'failed');

-- The right to open one terminal, once.
CREATE TABLE tickets (
  -- SHA-256 of the ticket, in hex.
  hash TEXT COLLATE "C" PRIMARY KEY,
  owner TEXT COLLATE "C" NOT NULL,
  project TEXT COLLATE "C" NOT NULL,
  run_id TEXT COLLATE "C" NOT NULL,
  expires_at BIGINT NOT NULL
);
CREATE INDEX tickets_by_end ON tickets (expires_at);

-- Base images: immutable EROFS files, named by their digest, on one host.
CREATE TABLE images (
  id TEXT COLLATE "C" PRIMARY KEY,
  host_id TEXT COLLATE "C" NOT NULL,
  name TEXT COLLATE "C" NOT NULL,
  -- SHA-256 of the file, in hex.
  digest TEXT COLLATE "C" NOT NULL,
  size_bytes BIGINT NOT NULL,
  -- JSON: environment, working directory and user of every command.
  config TEXT COLLATE "C" NOT NULL,
  -- What it was built from; shown to users, never interpreted.
  source TEXT COLLATE "C" NOT NULL,
  created_at BIGINT NOT NULL,
  -- Since then another image has the name; this one stays for its sandboxes.
  replaced_at BIGINT
);
CREATE UNIQUE INDEX images_by_name ON images (host_id, name) WHERE replaced_at IS NULL;
CREATE INDEX images_replaced ON images (host_id, replaced_at) WHERE replaced_at IS NOT NULL;
CREATE INDEX images_by_digest ON images (host_id, digest);

CREATE TABLE sandboxes (
  id TEXT COLLATE "C" PRIMARY KEY,
  owner TEXT COLLATE "C" NOT NULL,
  project TEXT COLLATE "C" NOT NULL,
  name TEXT COLLATE "C" NOT NULL,
  persistent BOOLEAN NOT NULL,
  image_id TEXT COLLATE "C" NOT NULL REFERENCES images (id),
  -- JSON with a version: environment, labels, network policy, limits.
  config TEXT COLLATE "C" NOT NULL,
  -- The newest run, which says where it lives.
  current_run TEXT COLLATE "C" NOT NULL,
  -- The snapshot that a fork copies, and that a run without volume starts from.
  current_snapshot TEXT COLLATE "C",
  -- Its files. NULL: the next run makes a volume, from current_snapshot if
  -- there is one.
  volume_id TEXT COLLATE "C",
  -- The last snapshot whose files the volume continues.
  descends_from TEXT COLLATE "C",
  -- Bytes below the volume: the image, and what the snapshot held that the
  -- volume was copied from.
  base_bytes BIGINT NOT NULL,
  -- Runs that these files have seen, those before a copy included.
  boots BIGINT NOT NULL,
  -- What its creation is repeated by, until the answer was taken.
  retry_key TEXT COLLATE "C",
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL,
  -- When the status of the newest run last changed.
  status_updated_at BIGINT NOT NULL,
  UNIQUE (owner, project, name)
);
CREATE INDEX sandboxes_by_age ON sandboxes (owner, project, id);
CREATE INDEX sandboxes_by_status ON sandboxes (owner, project, status_updated_at, id);
CREATE INDEX sandboxes_by_snapshot ON sandboxes (current_snapshot) WHERE current_snapshot IS NOT NULL;
CREATE INDEX sandboxes_by_image ON sandboxes (image_id);
CREATE UNIQUE INDEX sandboxes_by_volume ON sandboxes (volume_id) WHERE volume_id IS NOT NULL;

-- The labels of `sandboxes.config`, for filters.
CREATE TABLE sandbox_tags (
  sandbox_id TEXT COLLATE "C" NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
  key TEXT COLLATE "C" NOT NULL,
  value TEXT COLLATE "C" NOT NULL,
  PRIMARY KEY (sandbox_id, key)
);
CREATE INDEX sandbox_tags_by_value ON sandbox_tags (key, value);

-- The ports of `sandboxes.config`, each with the name that reaches it.
CREATE TABLE routes (
  subdomain TEXT COLLATE "C" PRIMARY KEY,
  sandbox_id TEXT COLLATE "C" NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
  port BIGINT NOT NULL,
  UNIQUE (sandbox_id, port)
);

CREATE TABLE runs (
  id TEXT COLLATE "C" PRIMARY KEY,
  sandbox_id TEXT COLLATE "C" NOT NULL,
  host_id TEXT COLLATE "C" NOT NULL,
  -- Copied from the sandbox, so that a run outlives it in lists.
  owner TEXT COLLATE "C" NOT NULL,
  project TEXT COLLATE "C" NOT NULL,
  sandbox_name TEXT COLLATE "C" NOT NULL,
  status TEXT COLLATE "C" NOT NULL,
  -- The sandbox's first run has 1.
  number BIGINT NOT NULL,
  -- What it was given. The environment is with the sandbox alone.
  vcpus BIGINT NOT NULL,
  memory_mib BIGINT NOT NULL,
  pids BIGINT NOT NULL,
  disk_mib BIGINT,
  cwd TEXT COLLATE "C" NOT NULL,
  -- Runtime that the sandbox was asked for by, else its image.
  runtime TEXT COLLATE "C" NOT NULL,
  -- JSON: the policy in force, without the values of headers.
  network TEXT COLLATE "C" NOT NULL,
  source_snapshot TEXT COLLATE "C",
  volume_id TEXT COLLATE "C" NOT NULL,
  -- The volume was made for this run: it goes if the run does not come up.
  made_volume BOOLEAN NOT NULL,
  -- Host process: pid and start time (clock ticks since boot) name it.
  pid BIGINT,
  pid_start BIGINT,
  boot_id TEXT COLLATE "C",
  slot BIGINT,
  timeout_ms BIGINT NOT NULL,
  expires_at BIGINT,
  requested_at BIGINT NOT NULL,
  started_at BIGINT,
  stop_requested_at BIGINT,
  stopped_at BIGINT,
  stop_reason TEXT COLLATE "C",
  -- JSON with a version: how it ends, decided before its processes do.
  ending TEXT COLLATE "C",
  -- JSON: what did not go as it should and did not keep it from starting.
  warnings TEXT COLLATE "C" NOT NULL,
  -- Since then it is no sandbox's current run: history, which is pruned.
  superseded_at BIGINT,
  updated_at BIGINT NOT NULL
);
-- Invariant 1: a sandbox has at most one live run, whatever races or crashes.
CREATE UNIQUE INDEX one_live_run ON runs (sandbox_id)
  WHERE status IN ('pending', 'running', 'stopping', 'snapshotting');
CREATE INDEX runs_live_on_host ON runs (host_id, id)
  WHERE status IN ('pending', 'running', 'stopping', 'snapshotting');
CREATE INDEX runs_live_by_volume ON runs (volume_id)
  WHERE status IN ('pending', 'running', 'stopping', 'snapshotting');
CREATE INDEX runs_by_age ON runs (owner, project, id);
CREATE INDEX runs_of_name ON runs (owner, project, sandbox_name, id);
CREATE INDEX runs_superseded ON runs (superseded_at) WHERE superseded_at IS NOT NULL;

CREATE TABLE snapshots (
  id TEXT COLLATE "C" PRIMARY KEY,
  -- Where its files are.
  host_id TEXT COLLATE "C" NOT NULL,
  owner TEXT COLLATE "C" NOT NULL,
  project TEXT COLLATE "C" NOT NULL,
  sandbox_id TEXT COLLATE "C" NOT NULL,
  sandbox_name TEXT COLLATE "C" NOT NULL,
  source_run TEXT COLLATE "C" NOT NULL,
  -- The image below it.
  image_id TEXT COLLATE "C" NOT NULL,
  kind TEXT COLLATE "C" NOT NULL,
  status TEXT COLLATE "C" NOT NULL,
  -- Bytes, those of the image included.
  size_bytes BIGINT NOT NULL,
  -- Runs that its files have seen.
  boots BIGINT NOT NULL,
  parent TEXT COLLATE "C",
  -- How long it stays after its last use; NULL: until it is deleted.
  expiration_ms BIGINT,
  expires_at BIGINT,
  -- It goes as soon as no sandbox would start from it.
  retired BOOLEAN NOT NULL,
  last_used_at BIGINT,
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL
);
CREATE INDEX snapshots_of_sandbox ON snapshots (sandbox_id, id);
CREATE INDEX snapshots_by_age ON snapshots (owner, project, id);
CREATE INDEX snapshots_of_name ON snapshots (owner, project, sandbox_name, id);
CREATE INDEX snapshots_by_parent ON snapshots (parent, id);
CREATE INDEX snapshots_by_image ON snapshots (image_id) WHERE status = 'created';
CREATE INDEX snapshots_due ON snapshots (expires_at) WHERE status = 'created' AND expires_at IS NOT NULL;
CREATE INDEX snapshots_deleted ON snapshots (updated_at) WHERE status = 'deleted';

-- Files that nothing refers to any more and that are still on disk. A row is
-- written in the transaction that takes the last reference away, and goes when
-- the files are gone.
CREATE TABLE garbage (
  host_id TEXT COLLATE "C" NOT NULL,
  -- 'volume', 'snapshot' or 'image'.
  kind TEXT COLLATE "C" NOT NULL,
  -- Id of the volume or snapshot, digest of the image.
  name TEXT COLLATE "C" NOT NULL,
  since BIGINT NOT NULL,
  PRIMARY KEY (host_id, kind, name)
);
CREATE INDEX garbage_by_age ON garbage (host_id, since);
