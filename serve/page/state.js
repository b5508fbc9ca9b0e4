// What is looked for, kept in the address, so that back, forward and sharing work.
//
// The names are those of the service's /search; `open` is the clip that the player shows. An example (a file, or the
// clip of `like`) has a name and a picture too: they lie in the history's entry, and files in memory, since neither
// belongs into an address.

export const FILTERS = ["folder", "min_duration", "max_duration", "after", "before"];
const QUERY = ["q", "like", "seen", ...FILTERS, "explain", "k"];
const SETTLED = 1500; // milliseconds without a change, after which the next one is a new entry of the history

const files = new Map();
const listeners = [];
let draft = "";
let settling = 0;

/** The state the address shows: the query's fields and `open` (strings, those that are set), and `example` or null. */
export function current() {
  const given = new URLSearchParams(location.search);
  const state = { example: history.state?.example ?? null };
  for (const name of [...QUERY, "open"]) if (given.get(name)) state[name] = given.get(name);
  return state;
}

/** The fields of a state that a search is made of. */
export function query(state) {
  return Object.fromEntries(QUERY.filter((name) => state[name]).map((name) => [name, state[name]]));
}

/** The address of the current state with changes. */
export function address(changes) {
  const next = { ...current(), ...changes };
  const params = new URLSearchParams();
  for (const name of [...QUERY, "open"]) if (next[name]) params.set(name, next[name]);
  return params.size ? `?${params}` : location.pathname;
}

/**
 * Go to the current state with changes. Another query begins with the first results and a closed player.
 *
 * Changes of one kind that follow each other (`as`: keys typed, a slider dragged) are one entry of the history.
 */
export function go(changes, { as = "" } = {}) {
  const all = "open" in changes ? changes : { open: "", k: "", ...changes };
  const example = "example" in all ? all.example : current().example;
  const next = address(all);
  const unchanged = next === (location.search || location.pathname);
  if (unchanged && example?.key === current().example?.key) {
    if (!as) draft = "";
    return;
  }
  const replace = as !== "" && as === draft;
  const entry = { example, opened: Boolean(all.open) };
  if (replace) history.replaceState({ ...entry, opened: history.state?.opened }, "", next);
  else history.pushState(entry, "", next);
  draft = as;
  clearTimeout(settling);
  settling = setTimeout(() => (draft = ""), SETTLED);
  tell();
}

/** Close the player: back to where it was opened, so that "forward" opens it again. */
export function close() {
  if (history.state?.opened) history.back();
  else go({ open: "" });
}

/** Keep a file for as long as the page lives. Returns the example to go to. */
export function keepFile(file) {
  const key = `${Date.now()}-${files.size}`;
  files.set(key, file);
  return { key, name: file.name };
}

/** The file of an example; undefined if it is none, or was kept before the page was loaded again. */
export const fileOf = (example) => files.get(example?.key);

/** Call `listener(state)` whenever the state changes. */
export function listen(listener) {
  listeners.push(listener);
}

function tell() {
  const state = current();
  for (const listener of listeners) listener(state);
}

addEventListener("popstate", () => {
  draft = "";
  tell();
});
