// Uses every operation of the provider API by a client that is made of its
// document. It is type-checked, not run. One line is one operation.

import createClient from "openapi-fetch";
import type { components, paths } from "./provider-api.js";

type Sandbox = components["schemas"]["Sandbox"];
type Failure = components["schemas"]["ErrorReply"];

export async function useEverything(token: string): Promise<[Sandbox[], Failure[]]> {
  const headers = { authorization: `Bearer ${token}` };
  const api = createClient<paths>({ baseUrl: "http://127.0.0.1:7700", headers });
  const sandboxes: Sandbox[] = [];
  const failures: Failure[] = [];
  const [name, id, command] = ["sandbox", "sbx_1", "cmd_1"];
  const keep = (reply: { data?: unknown; error?: Failure }) => {
    if (reply.error) failures.push(reply.error);
  };

  sandboxes.push(...((await api.GET("/api/v2/sandboxes")).data?.sandboxes ?? []));
  keep(await api.POST("/api/v2/sandboxes", { body: { name, source: { type: "git", url: "https://github.com/owner/repo" }, env: { A: "b" } } }));
  keep(await api.GET("/api/v2/sandboxes/drives"));
  keep(await api.GET("/api/v2/sandboxes/drives/{name}", { params: { path: { name } } }));
  keep(await api.POST("/api/v2/sandboxes/drives/{name}", { params: { path: { name } }, body: { maxSizeBytes: 1 << 30 } }));
  keep(await api.DELETE("/api/v2/sandboxes/drives/{name}", { params: { path: { name } } }));
  keep(await api.POST("/api/v2/sandboxes/drives/{name}/fork", { params: { path: { name } }, body: { name: "fork" } }));
  keep(await api.GET("/api/v2/sandboxes/sessions"));
  keep(await api.GET("/api/v2/sandboxes/sessions/{id}", { params: { path: { id } } }));
  keep(await api.GET("/api/v2/sandboxes/sessions/{id}/cmd", { params: { path: { id } } }));
  keep(await api.POST("/api/v2/sandboxes/sessions/{id}/cmd", { params: { path: { id } }, body: { command: "sh", args: ["-c", "echo hello"], wait: true, logs: true } }));
  keep(await api.GET("/api/v2/sandboxes/sessions/{id}/cmd/{command}", { params: { path: { id, command } } }));
  keep(await api.POST("/api/v2/sandboxes/sessions/{id}/cmd/{command}/kill", { params: { path: { id, command } }, body: { signal: 15 } }));
  keep(await api.GET("/api/v2/sandboxes/sessions/{id}/cmd/{command}/logs", { params: { path: { id, command } } }));
  keep(await api.POST("/api/v2/sandboxes/sessions/{id}/cmd/{command}/stdin", { params: { path: { id, command } }, body: { data: "aGVsbG8=", offset: 0, close: true } }));
  keep(await api.POST("/api/v2/sandboxes/sessions/{id}/extend-timeout", { params: { path: { id } }, body: { duration: 60_000 } }));
  keep(await api.POST("/api/v2/sandboxes/sessions/{id}/fs/mkdir", { params: { path: { id } }, body: { path: "made", recursive: true } }));
  keep(await api.POST("/api/v2/sandboxes/sessions/{id}/fs/read", { params: { path: { id } }, body: { path: "README.md" }, parseAs: "stream" }));
  keep(await api.POST("/api/v2/sandboxes/sessions/{id}/fs/write", { params: { path: { id } } }));
  keep(await api.POST("/api/v2/sandboxes/sessions/{id}/interactive", { params: { path: { id } } }));
  keep(await api.POST("/api/v2/sandboxes/sessions/{id}/network-policy", { params: { path: { id } }, body: { mode: "deny-all" } }));
  keep(await api.POST("/api/v2/sandboxes/sessions/{id}/snapshot", { params: { path: { id } }, body: { expiration: 0 } }));
  keep(await api.POST("/api/v2/sandboxes/sessions/{id}/stop", { params: { path: { id } } }));
  keep(await api.GET("/api/v2/sandboxes/snapshots"));
  keep(await api.GET("/api/v2/sandboxes/snapshots/tree", { params: { query: { snapshotId: "snap_1" } } }));
  keep(await api.GET("/api/v2/sandboxes/snapshots/{id}", { params: { path: { id } } }));
  keep(await api.DELETE("/api/v2/sandboxes/snapshots/{id}", { params: { path: { id } } }));
  keep(await api.GET("/api/v2/sandboxes/{name}", { params: { path: { name } } }));
  keep(await api.DELETE("/api/v2/sandboxes/{name}", { params: { path: { name } } }));
  keep(await api.PATCH("/api/v2/sandboxes/{name}", { params: { path: { name } }, body: { tags: { team: "blue" }, ports: [3000] } }));
  keep(await api.POST("/api/v2/sandboxes/{name}/fork", { params: { path: { name } }, body: { name: "fork", __live: true } }));
  keep(await api.GET("/api/v2/sandboxes/{name}/network", { params: { path: { name } } }));
  sandboxes.push(...((await api.GET("/api/v3/sandboxes")).data?.sandboxes ?? []));
  keep(await api.POST("/api/v3/sandboxes", { body: { name, source: { type: "git", url: "https://github.com/owner/repo" }, env: { A: "b" } } }));
  keep(await api.GET("/api/v3/sandboxes/drives"));
  keep(await api.GET("/api/v3/sandboxes/drives/{name}", { params: { path: { name } } }));
  keep(await api.POST("/api/v3/sandboxes/drives/{name}", { params: { path: { name } }, body: { maxSizeBytes: 1 << 30 } }));
  keep(await api.DELETE("/api/v3/sandboxes/drives/{name}", { params: { path: { name } } }));
  keep(await api.POST("/api/v3/sandboxes/drives/{name}/fork", { params: { path: { name } }, body: { name: "fork" } }));
  keep(await api.GET("/api/v3/sandboxes/sessions"));
  keep(await api.GET("/api/v3/sandboxes/sessions/{id}", { params: { path: { id } } }));
  keep(await api.GET("/api/v3/sandboxes/sessions/{id}/cmd", { params: { path: { id } } }));
  keep(await api.POST("/api/v3/sandboxes/sessions/{id}/cmd", { params: { path: { id } }, body: { command: "sh", args: ["-c", "echo hello"], wait: true, logs: true } }));
  keep(await api.GET("/api/v3/sandboxes/sessions/{id}/cmd/{command}", { params: { path: { id, command } } }));
  keep(await api.POST("/api/v3/sandboxes/sessions/{id}/cmd/{command}/kill", { params: { path: { id, command } }, body: { signal: 15 } }));
  keep(await api.GET("/api/v3/sandboxes/sessions/{id}/cmd/{command}/logs", { params: { path: { id, command } } }));
  keep(await api.POST("/api/v3/sandboxes/sessions/{id}/cmd/{command}/stdin", { params: { path: { id, command } }, body: { data: "aGVsbG8=", offset: 0, close: true } }));
  keep(await api.POST("/api/v3/sandboxes/sessions/{id}/extend-timeout", { params: { path: { id } }, body: { duration: 60_000 } }));
  keep(await api.POST("/api/v3/sandboxes/sessions/{id}/fs/mkdir", { params: { path: { id } }, body: { path: "made", recursive: true } }));
  keep(await api.POST("/api/v3/sandboxes/sessions/{id}/fs/read", { params: { path: { id } }, body: { path: "README.md" }, parseAs: "stream" }));
  keep(await api.POST("/api/v3/sandboxes/sessions/{id}/fs/write", { params: { path: { id } } }));
  keep(await api.POST("/api/v3/sandboxes/sessions/{id}/interactive", { params: { path: { id } } }));
  keep(await api.POST("/api/v3/sandboxes/sessions/{id}/network-policy", { params: { path: { id } }, body: { mode: "deny-all" } }));
  keep(await api.POST("/api/v3/sandboxes/sessions/{id}/snapshot", { params: { path: { id } }, body: { expiration: 0 } }));
  keep(await api.POST("/api/v3/sandboxes/sessions/{id}/stop", { params: { path: { id } } }));
  keep(await api.GET("/api/v3/sandboxes/snapshots"));
  keep(await api.GET("/api/v3/sandboxes/snapshots/tree", { params: { query: { snapshotId: "snap_1" } } }));
  keep(await api.GET("/api/v3/sandboxes/snapshots/{id}", { params: { path: { id } } }));
  keep(await api.DELETE("/api/v3/sandboxes/snapshots/{id}", { params: { path: { id } } }));
  keep(await api.GET("/api/v3/sandboxes/{name}", { params: { path: { name } } }));
  keep(await api.DELETE("/api/v3/sandboxes/{name}", { params: { path: { name } } }));
  keep(await api.PATCH("/api/v3/sandboxes/{name}", { params: { path: { name } }, body: { tags: { team: "blue" }, ports: [3000] } }));
  keep(await api.POST("/api/v3/sandboxes/{name}/fork", { params: { path: { name } }, body: { name: "fork", __live: true } }));
  keep(await api.GET("/api/v3/sandboxes/{name}/network", { params: { path: { name } } }));
  return [sandboxes, failures];
}
