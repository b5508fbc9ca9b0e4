// Requests to the service this page comes from. Paths are relative, so that a proxy may put it below a folder.

const UNREACHABLE = 5; // seconds until a service that does not answer is asked again

/** What the service, or the way to it, refused. `retryAfter`: seconds, or null where trying again is useless. */
export class ServiceError extends Error {
  constructor(message, { hint = "", status = 0, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { hint, status, retryAfter });
  }
}

/** How many clips there are, and of which model. */
export const health = () => request("health");

/** What can be filtered by. */
export const facets = () => request("facets");

/** Make the service know this browser by its API key. */
export const signIn = (key) =>
  request("session", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ key }) });

/** The hits of a query (an object of strings) and of an example file, if there is one. */
export function search(query, file, signal) {
  if (!file) return request(`search?${new URLSearchParams(query)}`, { signal });
  const body = new FormData();
  for (const [name, value] of Object.entries(query)) body.append(name, value);
  body.append("file", file, file.name);
  return request("search", { method: "POST", body, signal });
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (!navigator.onLine) {
      throw new ServiceError("No connection", { hint: "The search goes on as soon as this device is online again." });
    }
    throw new ServiceError("The service does not answer", { hint: "It may be restarting.", retryAfter: UNREACHABLE });
  }
  if (response.status === 204) return null;
  if (response.ok) return response.json();
  throw await refusal(response);
}

async function refusal(response) {
  const { status } = response;
  const text = await response.text();
  let told = {};
  try {
    told = JSON.parse(text).error ?? {};
  } catch {
    // a proxy's answer, which is no JSON: the status has to do
  }
  const wait = Number.parseFloat(response.headers.get("Retry-After"));
  const retryAfter = status === 503 || status === 429 ? (Number.isFinite(wait) ? wait : UNREACHABLE) : null;
  const message = told.message ?? (status === 503 ? "The service is busy" : `The service answered ${status}`);
  return new ServiceError(sentence(message), { hint: sentence(told.hint ?? ""), status, retryAfter });
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);
