-- Whose ticket it is: a terminal ends with the right to open it. Those that wait
-- now do so for a minute at most.
DELETE FROM tickets;
ALTER TABLE tickets ADD COLUMN account_id TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE tickets ADD COLUMN key_id TEXT COLLATE "C";

-- Requests that are recognized when they are sent again.
CREATE TABLE repeated_requests (
  account_id TEXT COLLATE "C" NOT NULL,
  key TEXT COLLATE "C" NOT NULL,
  -- What was asked for.
  digest TEXT COLLATE "C" NOT NULL,
  -- What is made for it.
  sandbox TEXT COLLATE "C" NOT NULL,
  -- What came of it, as JSON; NULL while somebody is at it, or died over it.
  answer TEXT COLLATE "C",
  created_at BIGINT NOT NULL,
  PRIMARY KEY (account_id, key)
);
CREATE INDEX repeated_requests_by_age ON repeated_requests (created_at);
