/**
 * A `fetch` for the `fetch` option of `@vercel/sandbox`: calls to the platform
 * go to the Dormouse server at `server`, such as `http://127.0.0.1:7700`.
 */
export function dormouseFetch(server: string, options?: { fetch?: typeof globalThis.fetch }): typeof globalThis.fetch;

/** The address of a published port. Throws when the port is not published. */
export function portUrl(
  sandbox: { name: string; routes: { url: string; port: number }[] },
  port: number,
): string;

/** Whom a process works for. */
export interface Credentials {
  /** Account or organization; the key's own account when it is left out. */
  team?: string;
  /** Project; `default` when it is left out. */
  project?: string;
}

/** A key in the form of a token of the platform's, for `VERCEL_OIDC_TOKEN`. */
export function token(key: string, credentials?: Credentials): string;

/** Replaces the global `fetch` and `WebSocket`, for programs that cannot be changed. */
export function register(server: string, credentials?: Credentials & { key?: string }): void;

/** Does the same to Node's `http` and `https`. */
export function patchNode(server: string, modules: { http: object; https: object }): void;

/** Does the same to the dispatcher that undici uses where a program names none. */
export function patchUndici(server: string): void;
