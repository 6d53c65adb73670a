-- Where an organization wants to be told what happens to the sessions of its
-- members in the repositories that it claims.
CREATE TABLE webhooks (
  id TEXT PRIMARY KEY,
  org_id TEXT NOT NULL REFERENCES organizations (id),
  url TEXT NOT NULL,
  -- What deliveries are signed with, `whsec_…`.
  secret TEXT NOT NULL,
  -- Deliveries that failed since one arrived, and when the next is tried.
  failures BIGINT NOT NULL DEFAULT 0,
  retry_at BIGINT NOT NULL DEFAULT 0,
  created_at BIGINT NOT NULL
);

-- Written in the transaction of what happened, which must not fail over a webhook that
-- goes in that moment.
CREATE TABLE webhook_deliveries (
  id TEXT PRIMARY KEY,
  webhook_id TEXT NOT NULL,
  body TEXT NOT NULL,
  -- 'waiting', 'delivered' or 'failed'.
  state TEXT NOT NULL,
  attempts BIGINT NOT NULL DEFAULT 0,
  -- What the last attempt came to.
  outcome TEXT,
  created_at BIGINT NOT NULL,
  ended_at BIGINT
);
CREATE INDEX webhook_deliveries_waiting ON webhook_deliveries (webhook_id, id) WHERE state = 'waiting';
CREATE INDEX webhook_deliveries_of ON webhook_deliveries (webhook_id, id);
CREATE INDEX webhook_deliveries_by_end ON webhook_deliveries (ended_at);
