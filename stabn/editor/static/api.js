// Every request to the server: JSON both ways, the CSRF token, and errors that say what to do.

let csrf = "", name = "";

export class ApiError extends Error {
  constructor(message, status, code, body = {}) {
    super(message);
    Object.assign(this, { status, code, body });
  }

  /** Whether the same request may succeed later. */
  get passing() {
    return this.code === "offline" || this.status >= 500 || this.status === 429;
  }
}

/** Send a request; body is JSON unless it is a Blob. Raises ApiError. */
export async function call(method, path, body, options = {}) {
  const headers = {};
  if (method !== "GET") headers["X-CSRF-Token"] = csrf;
  const raw = body instanceof Blob;
  if (body !== undefined) headers["Content-Type"] = raw ? "application/octet-stream" : "application/json";
  let response;
  try {
    response = await fetch(path, {
      method, headers, body: body === undefined || raw ? body : JSON.stringify(body), credentials: "same-origin", ...options,
    });
  } catch {
    throw new ApiError("There is no connection to the server.", 0, "offline");
  }
  if (response.ok) return options.whole ? response : response.json();
  let content = {};
  try { content = await response.json(); } catch { /* a proxy's page, not ours */ }
  if (content.code === "csrf" && !options.renewed && await renewed()) return call(method, path, body, { ...options, renewed: true });
  if (response.status === 401 && content.code === "sign_in") document.dispatchEvent(new Event("signed-out"));
  const message = content.error ?? `The server answered ${response.status}.`;
  throw new ApiError(message, response.status, content.code ?? "unknown", content);
}

export const get = (path) => call("GET", path);
export const post = (path, body) => call("POST", path, body);

/** Return who is signed in; raises ApiError 401 if nobody is. */
export async function session() { return remember(await get("api/session")); }

export async function signIn(person, password) { return remember(await post("api/sign-in", { name: person, password })); }

function remember(user) {
  ({ csrf, name } = user);
  return user;
}

/** Fetch a new token after the server was replaced; false if it is another person's or the same one. */
async function renewed() {
  try {
    const user = await get("api/session");
    if (user.name !== name || user.csrf === csrf) return false;
    csrf = user.csrf;
    return true;
  } catch { return false; }
}
