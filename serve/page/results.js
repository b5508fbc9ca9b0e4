// The grid of found clips.

import { clock } from "./format.js";
import { preview, stop } from "./preview.js";
import { address } from "./state.js";
import { showWhy } from "./why.js";

const list = document.getElementById("results");
const template = document.getElementById("card");
const cards = new Map(); // clip id -> card: a clip that is found again keeps its picture, without a flicker
let shaped = false;

/** Set what happens when a clip is opened and when more like it are asked for: functions of a hit. */
export function onChoice({ open, like }) {
  list.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (!card) return;
    const plainClick = !(event.ctrlKey || event.metaKey || event.shiftKey);
    if (event.target.closest(".open") && plainClick) {
      event.preventDefault();
      open(card.hit);
    } else if (event.target.closest(".like")) like(card.hit);
  });
}

/** Show hits, best first. */
export function showHits(hits) {
  const best = hits[0]?.score ?? 1;
  const shown = hits.map((hit) => {
    const card = cards.get(hit.clip) ?? makeCard(hit);
    fill(card, hit, best);
    return card;
  });
  cards.clear();
  hits.forEach((hit, i) => cards.set(hit.clip, shown[i]));
  // Moving an element that has the focus takes it away; the same order, as when a filter changes nothing, moves none.
  if (shown.length !== list.children.length || shown.some((card, i) => card !== list.children[i])) {
    const focused = document.activeElement;
    stop();
    list.replaceChildren(...shown);
    if (list.contains(focused)) focused.focus({ preventScroll: true });
  }
  list.hidden = hits.length === 0;
}

/** The hit with a clip id, if it is shown. */
export const shownHit = (clip) => cards.get(clip)?.hit;

/** Focus the first clip. Returns whether there is one. */
export function focusFirst() {
  const link = list.hidden ? null : list.querySelector(".open");
  link?.focus();
  return Boolean(link);
}

/** Move the focus from a clip by an arrow key, Home or End. Returns whether there is a clip there. */
export function moveFocus(card, key) {
  const all = [...list.children];
  const second = all.findIndex((other) => other.offsetTop > all[0].offsetTop); // row
  const columns = second < 0 ? all.length : second;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  const at = all.indexOf(card);
  const to = key === "Home" ? 0 : key === "End" ? all.length - 1 : at + steps[key];
  const link = all[to]?.querySelector(".open");
  link?.focus();
  return Boolean(link);
}

function makeCard(hit) {
  const card = template.content.firstElementChild.cloneNode(true);
  const picture = card.querySelector("img");
  picture.addEventListener("load", () => shape(picture));
  picture.addEventListener("error", () => {
    picture.hidden = true;
    card.querySelector(".no-picture").toggleAttribute("hidden", false);
  });
  const thumbnail = new URL(hit.thumbnail, location.href);
  thumbnail.searchParams.set("width", "480");
  picture.src = thumbnail;
  preview(card);
  return card;
}

function fill(card, hit, best) {
  card.hit = hit;
  const find = (selector) => card.querySelector(selector);
  const others = hit.clips.length - 1;
  find(".open").href = address({ open: hit.clip });
  find(".name > span").textContent = hit.name;
  find(".name").title = hit.name;
  find(".time").textContent = others > 0 ? `${clock(hit.start)}  +${others}` : clock(hit.start);
  find(".time").title = others > 0 ? `and ${others} more in this file` : "";
  find(".folder").textContent = hit.folder.split("/").at(-1);
  find(".folder").title = hit.folder;
  find(".number").textContent = hit.score.toFixed(2);
  find(".track > span").style.setProperty("--part", best > 0 ? Math.max(0, hit.score / best) : 0);
  find(".play").hidden = !hit.playable;
  find(".play").ariaLabel = `Play ${hit.name} in place`;
  find(".like").ariaLabel = find(".like").title = `More like ${hit.name}`;
  showWhy(find(".why"), hit.explanation);
}

/** Give all frames the shape of the first picture: most collections have one. */
function shape(picture) {
  if (shaped) return;
  shaped = true;
  const ratio = picture.naturalWidth / picture.naturalHeight;
  list.style.setProperty("--ratio", Math.min(1.78, Math.max(0.8, ratio)));
}
