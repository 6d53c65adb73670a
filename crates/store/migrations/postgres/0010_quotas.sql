-- What an owner uses is counted with each start.
CREATE INDEX runs_live_of_owner ON runs (owner)
  WHERE status IN ('pending', 'running', 'stopping', 'snapshotting');
CREATE INDEX snapshots_of_owner ON snapshots (owner) WHERE status = 'created' AND kind = 'manual';
