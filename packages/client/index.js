// Where the SDK and the CLI send their calls, whatever they are told.
const PLATFORM = "https://vercel.com/api/";
const TELEMETRY = "https://telemetry.vercel.com/";

function trimmed(server) {
  if (!server) throw new TypeError("dormouse-client: the server is missing, such as http://127.0.0.1:7700");
  return server.replace(/\/+$/, "");
}

/** A `fetch` that takes the SDK's calls to a Dormouse server. */
export function dormouseFetch(server, { fetch = globalThis.fetch } = {}) {
  const base = trimmed(server);
  return (input, init) => {
    const url = input instanceof Request ? input.url : String(input);
    if (!url.startsWith(PLATFORM)) return fetch(input, init);
    const target = `${base}/api/${url.slice(PLATFORM.length)}`;
    return fetch(input instanceof Request ? new Request(target, input) : target, init);
  };
}

/** The address of a published port: the server's own, where `domain()` of the SDK names the platform's. */
export function portUrl(sandbox, port) {
  const route = sandbox.routes.find((route) => route.port === port);
  if (!route) throw new Error(`port ${port} of sandbox ${sandbox.name} is not published`);
  return route.url;
}

/** Points everything in this process that uses the global `fetch` at a Dormouse server. */
export function register(server) {
  const base = trimmed(server);
  const inner = globalThis.fetch;
  const calls = dormouseFetch(base, { fetch: inner });
  const { hostname } = new URL(base);
  globalThis.fetch = (input, init) => {
    const url = input instanceof Request ? input.url : String(input);
    // The CLI asks the host of a terminal for its health, without the port.
    if (url === `https://${hostname}/health`) return inner(`${base}/health`, init);
    // What the CLI tells the platform about its use is no business of theirs here.
    if (url.startsWith(TELEMETRY)) return Promise.resolve(new Response(null, { status: 204 }));
    return calls(input, init);
  };
}
