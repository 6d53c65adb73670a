-- What happened to a session, in the order in which it did. Written in the
-- transaction of what happened.
CREATE TABLE session_events (
  session_id TEXT NOT NULL,
  -- Counts up within its session.
  seq BIGINT NOT NULL,
  at BIGINT NOT NULL,
  -- Version of the session's row after it.
  version BIGINT NOT NULL,
  state_before TEXT NOT NULL,
  state_after TEXT NOT NULL,
  reason TEXT NOT NULL,
  -- The account that wanted it; NULL: the server did it by itself.
  actor TEXT,
  detail TEXT,
  PRIMARY KEY (session_id, seq)
);
CREATE INDEX session_events_by_age ON session_events (at);
-- Number of the last one, also when it is forgotten.
ALTER TABLE sessions ADD COLUMN last_event BIGINT NOT NULL DEFAULT 0;
