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

/** Replaces the global `fetch`, for programs that cannot be changed. */
export function register(server: string): void;
