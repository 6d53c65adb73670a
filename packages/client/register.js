// node --import dormouse-client/register program.mjs, with DORMOUSE_SERVER set: every call of
// the program to the platform goes to the server. Bun takes it with --preload, Deno with
// --preload or as the first import.
import { patchNode, patchUndici, register } from "./index.js";

const { DORMOUSE_SERVER: server, DORMOUSE_KEY: key, DORMOUSE_TEAM: team, DORMOUSE_PROJECT: project } = process.env;
register(server, { key, team, project });

try {
  const [http, https, module] = await Promise.all([import("node:http"), import("node:https"), import("node:module")]);
  patchNode(server, { http: http.default, https: https.default });
  // Named imports of those modules see it too.
  module.syncBuiltinESMExports?.();
} catch {
  // A runtime without them has no programs that use them.
}
try {
  // Node makes its dispatcher with the first call.
  await globalThis.fetch("data:,");
  patchUndici(server);
} catch {
  // Not undici.
}
