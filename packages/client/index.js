// Where the SDK and the CLI send their calls, whatever they are told.
const PLATFORM = "https://vercel.com/api/";
const TELEMETRY = "https://telemetry.vercel.com/";

// What comes after the name of a published port in `domain()` of the SDK.
const PORTS = ".vercel.run";

// The server's header for such a name: nothing has to resolve it then.
const PORT_HEADER = "x-dormouse-port";

// The owner in a token that stands for the key's own account.
const OWN = "dormouse";

function trimmed(server) {
  if (!server) throw new TypeError("dormouse-client: the server is missing; set DORMOUSE_SERVER, such as http://127.0.0.1:7700");
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

/**
 * A key in the form that the SDKs want where they are given no credentials: three parts, of
 * which they read owner and project and the server the key.
 */
export function token(key, { team = OWN, project = "default" } = {}) {
  const part = (text) => btoa(text).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
  const claims = { owner_id: team || OWN, owner: team || OWN, project_id: project || "default", project: project || "default" };
  return `${part(JSON.stringify({ alg: "none", typ: "JWT" }))}.${part(JSON.stringify(claims))}.${part(key)}`;
}

/** What a URL of the platform's is at the server: its address, and the port that it is about. `null`: nothing of the platform's. */
function translate(base, url) {
  if (url.startsWith(PLATFORM)) return { target: `${base}/api/${url.slice(PLATFORM.length)}` };
  let parsed;
  try {
    parsed = new URL(url);
  } catch {
    return null;
  }
  if (!["https:", "http:", "wss:", "ws:"].includes(parsed.protocol) || !parsed.hostname.endsWith(PORTS)) return null;
  const web = parsed.protocol.startsWith("ws") ? base.replace(/^http/, "ws") : base;
  return { target: `${web}${parsed.pathname}${parsed.search}`, port: parsed.hostname.slice(0, -PORTS.length) };
}

/** Points everything in this process that speaks HTTP or WebSocket at a Dormouse server. */
export function register(server, { key, team, project } = {}) {
  const base = trimmed(server);
  // Bare `Sandbox.create()` and the CLI look here; nobody else's token is of use at our server.
  if (key) process.env.VERCEL_OIDC_TOKEN = token(key, { team, project });
  patchFetch(base);
  patchWebSocket(base);
}

function patchFetch(base) {
  const inner = globalThis.fetch;
  const { hostname } = new URL(base);
  globalThis.fetch = (input, init) => {
    const url = input instanceof Request ? input.url : String(input);
    // The CLI asks the host of a terminal for its health, without the port.
    if (url === `https://${hostname}/health`) return inner(`${base}/health`, init);
    // What the CLI tells the platform about its use is no business of theirs here.
    if (url.startsWith(TELEMETRY)) return Promise.resolve(new Response(null, { status: 204 }));
    const to = translate(base, url);
    if (!to) return inner(input, init);
    if (!to.port) return inner(input instanceof Request ? new Request(to.target, input) : to.target, init);
    const request = input instanceof Request ? new Request(new Request(to.target, input), init) : new Request(to.target, init);
    request.headers.set(PORT_HEADER, to.port);
    // A dispatcher is no property of a request.
    return inner(request, init?.dispatcher ? { dispatcher: init.dispatcher } : undefined);
  };
}

function patchWebSocket(base) {
  const Inner = globalThis.WebSocket;
  if (!Inner) return;
  globalThis.WebSocket = class WebSocket extends Inner {
    constructor(url, options) {
      const to = translate(base, String(url));
      if (!to) {
        super(url, options);
        return;
      }
      const given = typeof options === "string" || Array.isArray(options) ? { protocols: options } : { ...options };
      const headers = new Headers(given.headers);
      if (to.port) headers.set(PORT_HEADER, to.port);
      super(to.target, { ...given, headers: Object.fromEntries(headers) });
    }
  };
}

/** The same for Node's own `http` and `https`, and what is made of them (axios, ws, got). */
export function patchNode(base, { http, https }) {
  base = trimmed(base);
  const server = new URL(base);
  const to = server.protocol === "https:" ? https : http;
  const send = to.request;
  for (const module of [http, https]) {
    const { request } = module;
    module.request = function (input, options, callback) {
      if (typeof options === "function") [options, callback] = [undefined, options];
      const given = typeof input === "string" || input instanceof URL ? { ...urlOptions(new URL(input)), ...options } : { ...input, ...options };
      const host = given.hostname ?? given.host ?? "";
      const name = host.replace(/:\d+$/, "");
      const port = name.endsWith(PORTS) ? name.slice(0, -PORTS.length) : undefined;
      const platform = name === "vercel.com" && String(given.path).startsWith("/api/");
      if (!port && !platform) return request.apply(this, arguments);
      const headers = { ...given.headers, host: server.host };
      if (port) headers[PORT_HEADER] = port;
      const agent = given.agent === false ? false : undefined;
      const changed = { ...given, protocol: server.protocol, hostname: server.hostname, host: server.hostname, port: server.port, servername: undefined, headers, agent };
      // `ws` brings a connection of its own.
      delete changed.createConnection;
      delete changed.defaultPort;
      return send.call(to, changed, callback);
    };
    module.get = function (...args) {
      const made = module.request(...args);
      made.end();
      return made;
    };
  }
}

function urlOptions(url) {
  return { protocol: url.protocol, hostname: url.hostname, port: url.port, path: `${url.pathname}${url.search}` };
}

// Under this name the undici of Node and the one from npm find the dispatcher of whoever names none.
const DISPATCHER = Symbol.for("undici.globalDispatcher.1");

/** The same for undici, Node's own and that from npm, where a program names no dispatcher. */
export function patchUndici(base) {
  base = trimmed(base);
  const inner = globalThis[DISPATCHER];
  if (!inner) return;
  const { origin } = new URL(base);
  const dispatcher = new Proxy(inner, {
    get(target, name) {
      if (name !== "dispatch") {
        const value = Reflect.get(target, name, target);
        return typeof value === "function" ? value.bind(target) : value;
      }
      return (options, handler) => {
        const to = translate(base, `${options.origin}${options.path}`);
        if (!to) return target.dispatch(options, handler);
        const { pathname, search } = new URL(to.target);
        const headers = to.port ? withHeader(options.headers, PORT_HEADER, to.port) : options.headers;
        return target.dispatch({ ...options, origin, path: `${pathname}${search}`, headers }, handler);
      };
    },
  });
  Object.defineProperty(globalThis, DISPATCHER, { value: dispatcher, writable: true, enumerable: false, configurable: false });
}

/** undici takes headers as a flat list, pairs, or an object. */
function withHeader(headers, name, value) {
  if (!headers) return { [name]: value };
  if (Array.isArray(headers)) return [...headers, ...(Array.isArray(headers[0]) ? [[name, value]] : [name, value])];
  if (typeof headers[Symbol.iterator] === "function") return [...headers, [name, value]];
  return { ...headers, [name]: value };
}
