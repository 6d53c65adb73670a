-- Snapshots with a repository in them, from which new sandboxes of that
-- repository start. The files are a snapshot like others.
CREATE TABLE org_snapshots (
  id TEXT COLLATE "C" PRIMARY KEY,
  -- 'owner/name' in lower case, and the first half of it.
  repo TEXT COLLATE "C" NOT NULL,
  owner TEXT COLLATE "C" NOT NULL,
  -- 'public' or 'claimed': who may start from it.
  access TEXT COLLATE "C" NOT NULL,
  -- The host that can start from it; '' where the provider is one place.
  place TEXT COLLATE "C" NOT NULL,
  snapshot_id TEXT COLLATE "C" NOT NULL UNIQUE,
  -- What is checked out.
  branch TEXT COLLATE "C" NOT NULL,
  commit_id TEXT COLLATE "C" NOT NULL,
  -- 'none', 'pending', 'done' or 'failed'.
  set_up TEXT COLLATE "C" NOT NULL,
  -- When a sandbox last started from it, to the hour.
  last_used_at BIGINT NOT NULL,
  -- A newer one took its place, or it did not work.
  retired_at BIGINT,
  created_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX org_snapshots_published ON org_snapshots (repo, access, place) WHERE retired_at IS NULL;
CREATE INDEX org_snapshots_unused ON org_snapshots (place, last_used_at) WHERE retired_at IS NULL;
CREATE INDEX org_snapshots_retired ON org_snapshots (place, retired_at) WHERE retired_at IS NOT NULL;

-- How each of them was made, or was not.
CREATE TABLE org_builds (
  id TEXT COLLATE "C" PRIMARY KEY,
  repo TEXT COLLATE "C" NOT NULL,
  access TEXT COLLATE "C" NOT NULL,
  place TEXT COLLATE "C" NOT NULL,
  -- 'create', 'clone', 'set_up', 'snapshot', 'publish', 'published' or 'failed'.
  phase TEXT COLLATE "C" NOT NULL,
  -- What was said in it, the last part of it.
  log TEXT COLLATE "C" NOT NULL,
  started_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL,
  ended_at BIGINT
);
CREATE INDEX org_builds_of_repo ON org_builds (repo, started_at);
CREATE INDEX org_builds_ended ON org_builds (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX org_builds_running ON org_builds (place) WHERE ended_at IS NULL;
