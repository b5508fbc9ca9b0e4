// Search clips by what is seen and heard: the state in the address is searched for, and what comes back is shown.

import * as api from "./api.js";
import { onFile } from "./examples.js";
import { offer, onFilters, showFilters } from "./filters.js";
import { megabytes, plural } from "./format.js";
import "./keyboard.js";
import { onRecording } from "./microphone.js";
import { hideNotice, isTrouble, say, showNotice } from "./notice.js";
import { closePlayer, onPlayer, openPlayer } from "./player.js";
import { stop } from "./preview.js";
import { onChoice, showHits, shownHit } from "./results.js";
import { close, current, fileOf, go, keepFile, listen, query } from "./state.js";

const TYPING = 100; // milliseconds after a key, a slider's step ... until its search is sent
const UPLOADING = 400; // the same where every search sends a file
const [FIRST, MOST] = [24, 100];

const words = document.getElementById("words");
const tools = document.getElementById("tools");
const progress = document.getElementById("progress");
const count = document.getElementById("count");
const more = document.getElementById("more");
const example = document.getElementById("example");

let pending = {}; // changes that are not gone to yet
let waiting = 0; // the timer that goes to them
let request = null; // AbortController of the search under way
let searched = ""; // what the results, or the search under way, are of
let about = null; // the service's /health
let learning = false; // whether it has been asked for
let uploads = Infinity; // the most bytes of a file

function show(state) {
  document.title = state.q ? `${state.q} – Search clips` : "Search clips";
  if (!waiting && words.value.trim() !== (state.q ?? "")) words.value = state.q ?? "";
  showFilters(state);
  showExample(state);
  if (!state.open) closePlayer();
  const wanted = JSON.stringify([query(state), state.example?.key]);
  if (wanted !== searched) search(state, wanted);
  else showOpened(state);
}

async function search(state, wanted) {
  request?.abort();
  searched = wanted;
  const file = fileOf(state.example);
  if (state.example?.key && !file) {
    busy(false);
    clearResults();
    refuse("The file of this search is gone", "A page that is loaded again forgets it. Give the file once more.");
    return;
  }
  if (isIdle(state) || about?.clips === 0) {
    begin();
    return;
  }
  request = new AbortController();
  const { signal } = request;
  busy(true);
  try {
    const found = await api.search({ k: String(FIRST), ...query(state) }, file, signal);
    busy(false);
    showFound(state, found);
  } catch (error) {
    if (signal.aborted) return; // a newer search is under way
    busy(false);
    searched = "";
    if (!(error instanceof api.ServiceError)) throw error;
    showTrouble(error);
  }
}

const isIdle = (state) => !state.q && !state.like && !state.example?.key;

function showFound(state, { hits, milliseconds }) {
  learn();
  tools.hidden = false;
  hideNotice();
  showHits(hits);
  const asked = Number(state.k ?? FIRST);
  more.hidden = hits.length < asked || asked >= MOST;
  if (hits.length) {
    count.textContent = `${plural(hits.length, "result")} · ${Math.max(1, Math.round(milliseconds))} ms`;
    say(`${plural(hits.length, "result")}, the best is ${hits[0].name}`);
  } else {
    count.textContent = "";
    const filtered = document.querySelector("#filters-toggle.used");
    const text = filtered ? "No file passes the filters. Clear some of them." : "Try other words, or an example.";
    showNotice({ title: "Nothing was found", text });
    say(`Nothing was found. ${text}`);
  }
  showOpened(current());
}

function showOpened(state) {
  const hit = state.open && shownHit(state.open);
  if (hit) openPlayer(hit);
  else closePlayer();
}

function showTrouble({ message, hint, status, retryAfter }) {
  clearResults();
  showNotice({
    title: message,
    text: hint,
    trouble: true,
    // What the user gave would be refused again.
    onRetry: status >= 400 && retryAfter === null && status < 500 ? null : tryAgain,
    seconds: retryAfter,
    onKey: status === 401 ? signIn : null,
  });
  say(`${message}. ${hint}`);
}

function tryAgain() {
  learn();
  searched = "";
  show(current());
}

async function signIn(key) {
  try {
    await api.signIn(key);
  } catch (error) {
    if (!(error instanceof api.ServiceError)) throw error;
    showTrouble(error);
    return;
  }
  hideNotice();
  tryAgain();
}

/** Nothing is looked for yet. */
function begin() {
  request?.abort();
  busy(false);
  clearResults();
  tools.hidden = true;
  if (about?.clips === 0) {
    const text = "Add a folder of videos, then load this page again:";
    showNotice({ title: "Nothing is indexed yet", text, code: "eao index FOLDER" });
    return;
  }
  const size = about ? ` ${plural(about.clips, "clip")} of ${plural(about.files, "file")}.` : "";
  showNotice({
    title: "Find the moment by what is seen and heard",
    text: `Type what happens, drop in a video or a sound, or record one.${size}`,
  });
}

/** Something the user gave cannot be searched with: what was found before stays. */
function refuse(title, text) {
  showNotice({ title, text, trouble: true });
  say(`${title}. ${text}`);
}

function clearResults() {
  showHits([]);
  closePlayer();
  count.textContent = "";
  more.hidden = true;
}

function busy(is) {
  progress.hidden = !is;
  document.getElementById("results").ariaBusy = String(is);
  if (!is) request = null;
}

function showExample(state) {
  example.hidden = !state.like && !state.example?.key;
  if (example.hidden) return;
  const { name, picture } = state.example ?? {};
  const image = example.querySelector("img");
  image.hidden = !picture;
  if (picture && image.getAttribute("src") !== picture) image.src = picture;
  example.querySelector("svg").toggleAttribute("hidden", Boolean(picture));
  example.querySelector(".label").textContent = state.like ? `More like ${name ?? "a clip"}` : name;
}

/** Go to changes, and to those that wait. */
function commit(changes, as = "") {
  clearTimeout(waiting);
  waiting = 0;
  const all = { ...pending, ...changes };
  pending = {};
  go(all, { as });
}

/** Go to changes once no other has come for a moment. */
function soon(changes, as) {
  Object.assign(pending, changes);
  clearTimeout(waiting);
  waiting = setTimeout(() => commit({}, as), fileOf(current().example) ? UPLOADING : TYPING);
}

/** The change that words make: beside a file they are looked for together, in place of "more like this". */
function wordsChange() {
  const q = words.value.trim();
  return q && current().like ? { q, like: "", example: null } : { q };
}

function useFile(file) {
  if (file.size > uploads) {
    refuse("The file is too large", `${file.name} has ${megabytes(file.size)}; ${megabytes(uploads)} can be searched with. Cut out the moment that matters.`);
  } else if (file.size === 0) {
    refuse("The file is empty", `${file.name} holds nothing to search with.`);
  } else commit({ like: "", example: keepFile(file) });
}

function likeThis(hit) {
  stop();
  commit({ q: "", like: hit.clip, example: { name: hit.name, picture: hit.thumbnail } });
  scrollTo({ top: 0 });
}

/** Ask what there is to be searched, unless it is known, and offer to filter by it. */
async function learn() {
  if (about || learning) return;
  learning = true;
  try {
    const [found, known] = await Promise.all([api.facets(), api.health()]);
    uploads = found.uploads;
    about = known;
    offer(found);
    showFilters(current());
    // What was refused meanwhile stays to be read.
    if ((isIdle(current()) && !isTrouble()) || about.clips === 0) begin();
  } catch (error) {
    if (!(error instanceof api.ServiceError)) throw error;
    // Without them the page works, with fewer filters, and the search itself tells what is wrong.
    if (isIdle(current())) showTrouble(error);
  } finally {
    learning = false;
  }
}

words.addEventListener("input", () => soon(wordsChange(), "q"));
document.getElementById("form").addEventListener("submit", (event) => {
  event.preventDefault();
  commit(wordsChange());
});
document.getElementById("home").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  commit({ ...Object.fromEntries(Object.keys(query(current())).map((name) => [name, ""])), q: "", example: null });
  words.focus();
});
example.querySelector("button").addEventListener("click", () => {
  commit({ like: "", example: null });
  words.focus();
});
more.querySelector("button").addEventListener("click", () => commit({ k: String(MOST), open: "" }));
onFilters((changes, as) => (as ? soon(changes, as) : commit(changes)));
onFile(useFile, refuse);
onRecording(useFile, refuse);
onChoice({
  open: (hit) => {
    stop();
    commit({ open: hit.clip });
  },
  like: likeThis,
});
onPlayer({ close, like: likeThis });
listen(show);

show(current());
if (matchMedia("(hover: hover)").matches) words.focus(); // elsewhere a keyboard would cover the page
learn();
