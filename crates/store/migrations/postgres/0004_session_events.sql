-- What happened to a session, in the order in which it did. Written in the
-- transaction of what happened.
CREATE TABLE session_events (
  session_id TEXT COLLATE "C" NOT NULL,
  -- Counts up within its session.
  seq BIGINT NOT NULL,
  at BIGINT NOT NULL,
  -- Version of the session's row after it.
  version BIGINT NOT NULL,
  state_before TEXT COLLATE "C" NOT NULL,
  state_after TEXT COLLATE "C" NOT NULL,
  reason TEXT COLLATE "C" NOT NULL,
  -- The account that wanted it; NULL: the server did it by itself.
  actor TEXT COLLATE "C",
  detail TEXT COLLATE "C",
  PRIMARY KEY (session_id, seq)
);
CREATE INDEX session_events_by_age ON session_events (at);
-- Number of the last one, also when it is forgotten.
ALTER TABLE sessions ADD COLUMN last_event BIGINT NOT NULL DEFAULT 0;
