// The larger player: a found clip at its moment, with the other moments of its file.

import { clock } from "./format.js";
import { showWhy } from "./why.js";

const dialog = document.getElementById("player");
const video = dialog.querySelector("video");
const moments = dialog.querySelector("ol");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const unplayable = dialog.querySelector(".unplayable");
const copyButton = dialog.querySelector(".copy");
let shown = null;

/** Set what happens when the player is to be closed and when more like its clip are asked for. */
export function onPlayer({ close, like }) {
  copyButton.hidden = !navigator.clipboard; // it is there over https and on localhost alone
  // Escape closes a dialog without asking: then the address has to follow.
  dialog.addEventListener("close", () => shown && close());
  video.addEventListener("error", () => showPlayable(false));
  dialog.addEventListener("click", (event) => {
    const target = event.target;
    if (target === dialog || target.closest(".close")) close();
    else if (target.closest(".like")) like(shown);
    else if (target.closest(".copy")) copyLink();
    else if (target.closest("li button")) jump(Number(target.closest("li").value) - 1, true);
  });
}

/** Open the player with a hit, or give it the hit's newer scores. */
export function openPlayer(hit) {
  const again = dialog.open && shown?.clip === hit.clip;
  shown = hit;
  dialog.querySelector("h2").textContent = hit.name;
  copyButton.querySelector("span").textContent = "Copy link";
  dialog.querySelector(".where").textContent = [hit.folder, clock(hit.duration)].filter(Boolean).join(" · ");
  showWhy(dialog.querySelector(".why"), hit.explanation);
  showMoments(hit.clips);
  if (!again) showPlayable(hit.playable);
  if (!dialog.open) dialog.showModal();
  if (!again && hit.playable) jump(0, !calm.matches);
}

/** Close the player, if it is open. */
export function closePlayer() {
  if (!shown) return;
  shown = null;
  dialog.close();
  video.removeAttribute("src");
  video.load();
}

async function copyLink() {
  await navigator.clipboard.writeText(location.href);
  copyButton.querySelector("span").textContent = "Link copied";
}

function showPlayable(is) {
  video.hidden = !is;
  unplayable.hidden = is;
  if (shown) unplayable.querySelector("a").href = shown.url;
}

function showMoments(clips) {
  dialog.querySelector(".moments").hidden = clips.length < 2;
  moments.replaceChildren(
    ...clips.map((clip, i) => {
      const item = document.createElement("li");
      item.value = i + 1;
      const button = document.createElement("button");
      button.type = "button";
      const time = document.createElement("span");
      time.textContent = `${clock(clip.start)} – ${clock(clip.end)}`;
      const score = document.createElement("span");
      score.className = "number";
      score.textContent = clip.score.toFixed(2);
      button.append(time, score);
      item.append(button);
      return item;
    }),
  );
}

function jump(number, playing) {
  const { start } = shown.clips[number] ?? shown;
  for (const [i, button] of [...moments.querySelectorAll("button")].entries()) {
    button.ariaCurrent = i === number ? "true" : null;
  }
  const source = new URL(shown.url, location.href).href;
  if (video.src.split("#")[0] === source) video.currentTime = start;
  else video.src = `${source}#t=${start}`;
  if (!playing) return;
  video.play().catch((error) => {
    // Opened by an address, a page may not play sound until it is touched: then the controls are there.
    if (error.name !== "NotAllowedError" && error.name !== "AbortError" && error.name !== "NotSupportedError") throw error;
  });
}
