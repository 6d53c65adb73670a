-- Whose ticket it is: a terminal ends with the right to open it. Those that wait
-- now do so for a minute at most.
DELETE FROM tickets;
ALTER TABLE tickets ADD COLUMN account_id TEXT NOT NULL DEFAULT '';
ALTER TABLE tickets ADD COLUMN key_id TEXT;

-- Requests that are recognized when they are sent again.
CREATE TABLE repeated_requests (
  account_id TEXT NOT NULL,
  key TEXT NOT NULL,
  -- What was asked for.
  digest TEXT NOT NULL,
  -- What is made for it.
  sandbox TEXT NOT NULL,
  -- What came of it, as JSON; NULL while somebody is at it, or died over it.
  answer TEXT,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (account_id, key)
);
CREATE INDEX repeated_requests_by_age ON repeated_requests (created_at);
