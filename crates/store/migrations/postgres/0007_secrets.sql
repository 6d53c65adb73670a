-- The key that seals what is secret in this database, by its id: whoever comes with
-- another cannot read it.
CREATE TABLE secret_key (
  id TEXT COLLATE "C" PRIMARY KEY
);

-- Secrets of organizations, which are put on requests outside of sandboxes.
CREATE TABLE secrets (
  org_id TEXT COLLATE "C" NOT NULL REFERENCES organizations (id),
  name TEXT COLLATE "C" NOT NULL,
  -- Names of hosts, as JSON, and the header in which the secret goes there.
  hosts TEXT COLLATE "C" NOT NULL,
  header TEXT COLLATE "C" NOT NULL,
  -- What stands for it inside.
  placeholder TEXT COLLATE "C" NOT NULL,
  -- Sealed.
  value TEXT COLLATE "C" NOT NULL,
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL,
  PRIMARY KEY (org_id, name)
);

-- Bytes that left the sandbox and came, once the run has ended.
ALTER TABLE runs ADD COLUMN sent_bytes BIGINT NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN received_bytes BIGINT NOT NULL DEFAULT 0;
