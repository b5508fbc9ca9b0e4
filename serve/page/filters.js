// What is compared with (seen, heard), and which files may be found.

import { clock } from "./format.js";
import { FILTERS } from "./state.js";

const toggle = document.getElementById("filters-toggle");
const form = document.getElementById("filters");
const count = document.getElementById("filters-count");
const explain = document.getElementById("explain");
const balance = document.getElementById("balance");
const range = document.getElementById("balance-range");
const MIDDLE = 50; // both together: the clips' joint vectors

/** Call `change(changes, kind)` with fields of the state when the user changes them. */
export function onFilters(change) {
  toggle.addEventListener("click", () => setOpen(form.hidden));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    if (event.target.checkValidity()) change({ [event.target.name]: event.target.value }, event.target.name);
  });
  form.addEventListener("reset", () => change(Object.fromEntries(FILTERS.map((name) => [name, ""])), ""));
  explain.addEventListener("change", () => change({ explain: explain.checked ? "true" : "" }, ""));
  range.addEventListener("input", () => {
    describeBalance();
    const heard = Number(range.value);
    change({ seen: heard === MIDDLE ? "" : String((100 - heard) / 100) }, "seen");
  });
  document.getElementById("balance-reset").addEventListener("click", () => {
    change({ seen: "" }, "");
    range.focus(); // the button goes away
  });
}

/** Offer what the index has: the service's facets. */
export function offer({ folders, duration, modified, has_audio: hasAudio }) {
  const select = form.elements.folder;
  const below = folders.filter((folder) => folder !== ""); // that is the one of all files
  select.closest("label").hidden = below.length === 0;
  const chosen = select.value;
  select.replaceChildren(select.options[0], ...below.map((folder) => new Option(folder, folder)));
  if (chosen) choose(chosen);
  if (duration) {
    form.elements.min_duration.placeholder = Math.floor(duration[0]);
    form.elements.max_duration.placeholder = Math.ceil(duration[1]);
    form.elements.max_duration.title = `The longest file lasts ${clock(duration[1])}`;
  }
  if (modified) {
    const [first, last] = modified.map((time) => time.slice(0, 10));
    for (const name of ["after", "before"]) form.elements[name].title = `Files were changed from ${first} to ${last}`;
  }
  balance.hidden = !hasAudio;
}

/** Show the fields of a state, except the one that is being typed into. */
export function showFilters(state) {
  for (const name of FILTERS) {
    const field = form.elements[name];
    if (field === document.activeElement && field.value) continue;
    if (name === "folder") choose(state.folder ?? "");
    else field.value = (state[name] ?? "").slice(0, field.type === "date" ? 10 : undefined);
  }
  const used = FILTERS.filter((name) => state[name]).length;
  count.textContent = used;
  count.hidden = used === 0;
  toggle.classList.toggle("used", used > 0);
  explain.checked = state.explain === "true";
  range.value = state.seen ? Math.round(100 - 100 * Number(state.seen)) : MIDDLE;
  describeBalance();
}

/** Close the panel of filters. Returns whether it was open. */
export function closeFilters() {
  if (form.hidden) return false;
  if (form.contains(document.activeElement)) toggle.focus();
  setOpen(false);
  return true;
}

function setOpen(open) {
  form.hidden = !open;
  toggle.ariaExpanded = String(open);
  if (!open || !matchMedia("(hover: hover)").matches) return; // on a phone a keyboard would cover them
  form.querySelector("label:not([hidden]) :is(select, input)").focus();
}

function choose(folder) {
  const select = form.elements.folder;
  // A shared address may name a folder whose facets are not here yet.
  if (![...select.options].some((option) => option.value === folder)) select.add(new Option(folder, folder));
  select.value = folder;
}

function describeBalance() {
  const heard = Number(range.value);
  const words =
    heard === MIDDLE ? "both together"
    : heard === 0 ? "only what is seen"
    : heard === 100 ? "only what is heard"
    : `${100 - heard} % seen, ${heard} % heard`;
  range.setAttribute("aria-valuetext", words);
  document.getElementById("balance-text").textContent = words;
  document.getElementById("balance-reset").hidden = heard === MIDDLE;
}
