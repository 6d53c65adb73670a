// Uses every operation of the session API by a client that is made of its
// document. It is type-checked, not run.

import createClient from "openapi-fetch";
import type { components, paths } from "./session-api.js";

type Session = components["schemas"]["Session"];
type Api = ReturnType<typeof createClient<paths>>;

function provision(api: Api, body: components["schemas"]["CreateSandboxRequest"]) {
  return api.POST("/api/sandbox", { body });
}

export async function useEverything(key: string): Promise<number> {
  const api = createClient<paths>({ baseUrl: "http://127.0.0.1:7700", headers: { "x-api-key": key } });

  const repoUrl = "https://github.com/owner/repo";
  const oneShot = await provision(api, { repoUrl });
  const word: "error" | undefined = oneShot.error?.status;
  const mode: "vercel" | undefined = oneShot.data?.mode;
  // @ts-expect-error: the repository must be named.
  const nothing: components["schemas"]["CreateSandboxRequest"] = {};

  const made = await api.POST("/api/sessions", { body: { title: "A session", repoUrl } });
  const session: Session | undefined = made.data?.session;
  const sessionId = session?.id ?? "";
  const { data: ready } = await provision(api, { repoUrl, sessionId });
  const branch: string = ready?.currentBranch ?? "";
  const readyMs: number = ready?.timing.readyMs ?? 0;

  const status = await api.GET("/api/sandbox/status", { params: { query: { sessionId } } });
  const state: string | undefined = status.data?.lifecycle.state;
  const probe = await api.GET("/api/sandbox/reconnect", { params: { query: { sessionId } } });
  const history = await api.GET("/api/sandbox/events", { params: { query: { sessionId, limit: "10" } } });
  // It is a page, or a stream as text.
  const page = typeof history.data === "object" ? history.data : undefined;
  const reason: string | undefined = page?.events[0]?.reason;
  const active = await api.POST("/api/sandbox/activity", { body: { sessionId } });
  const extended = await api.POST("/api/sandbox/extend", { body: { sessionId } });
  const paused = await api.POST("/api/sandbox/snapshot", { body: { sessionId } });
  const resumed = await api.PUT("/api/sandbox/snapshot", { body: { sessionId } });
  const stopped = await api.DELETE("/api/sandbox", { body: { sessionId } });
  const answers: (boolean | undefined)[] = [active.data?.success, resumed.data?.success, stopped.data?.success];
  const numbers: number[] = [extended.data?.expiresAt ?? 0, paused.data?.createdAt ?? 0, probe.data?.expiresAt ?? 0];

  const list = await api.GET("/api/sessions", { params: { query: { status: "active", limit: "10" } } });
  const one = await api.GET("/api/sessions/{id}", { params: { path: { id: sessionId } } });
  const changed = await api.PATCH("/api/sessions/{id}", {
    params: { path: { id: sessionId } },
    body: { status: "archived" },
  });
  const gone = await api.DELETE("/api/sessions/{id}", { params: { path: { id: sessionId } } });
  const sessions: Session[] = [...(list.data?.sessions ?? []), ...(one.data ? [one.data.session] : [])];

  const snapshots = await api.GET("/api/org-snapshots", { params: { query: { repoUrl } } });
  const asked = await api.POST("/api/org-snapshots", { body: { repoUrl } });
  const builds = await api.GET("/api/org-snapshots/builds", { params: { query: { repoUrl } } });
  const id = snapshots.data?.orgSnapshots[0]?.id ?? "";
  const deleted = await api.DELETE("/api/org-snapshots/{id}", { params: { path: { id } } });
  const log: string | undefined = builds.data?.builds[0]?.log;

  const keys = await api.GET("/api/keys");
  const fresh = await api.POST("/api/keys", { body: { key_name: "laptop" } });
  const revoked = await api.DELETE("/api/keys", { body: { id: fresh.data?.id ?? "" } });

  const used = await api.GET("/api/sandbox/network", { params: { query: { sessionId } } });
  const org = "org_1";
  const secret = { params: { path: { org, name: "API_KEY" } } };
  const put = await api.PUT("/api/organizations/{org}/secrets/{name}", {
    ...secret,
    body: { value: "s3cret-s3cret", hosts: ["api.example.com"] },
  });
  const secrets = await api.GET("/api/organizations/{org}/secrets", { params: { path: { org } } });
  const forgotten = await api.DELETE("/api/organizations/{org}/secrets/{name}", secret);

  const said = [used.data, put.data, secrets.data?.secrets[0]?.name, forgotten.data, log, reason, asked.data, deleted.data, word, mode, nothing, branch, state, changed.data, gone.data, keys.data, revoked.data];
  return said.length + answers.length + numbers.length + sessions.length + readyMs;
}
