// Plays a clip in its card: muted, from its moment, over and over until left. One card at a time.

const calm = matchMedia("(prefers-reduced-motion: reduce)");
const INTENT = 90; // milliseconds that the pointer rests before a preview starts: crossing the grid loads nothing

let playing = null; // { card, video, hit, frame: the handle of the next watch }
let intent = 0;

/** Play where the pointer or the keyboard's focus is, and by the card's button (shown for touch and calm motion). */
export function preview(card) {
  const link = card.querySelector(".open");
  const button = card.querySelector(".play");
  card.addEventListener("pointerenter", (event) => {
    if (event.pointerType !== "mouse" || calm.matches) return;
    clearTimeout(intent);
    intent = setTimeout(() => start(card), INTENT);
  });
  card.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse" && !calm.matches) stop(card);
  });
  link.addEventListener("focus", () => {
    if (link.matches(":focus-visible") && !calm.matches) start(card);
  });
  card.addEventListener("focusout", (event) => {
    if (!card.contains(event.relatedTarget)) stop(card);
  });
  button.addEventListener("click", () => (playing?.card === card ? stop(card) : start(card)));
}

/** Stop the preview of a card, or whichever plays. */
export function stop(card = playing?.card) {
  clearTimeout(intent);
  if (!playing || playing.card !== card) return;
  const { video, frame } = playing;
  playing = null;
  cancelAnimationFrame(frame);
  card.classList.remove("playing");
  card.querySelector(".play").ariaPressed = "false";
  video.remove();
  video.removeAttribute("src"); // ends the download, which a removed element would go on with
  video.load();
}

function start(card) {
  const { hit } = card;
  if (playing?.card === card || !hit.playable) return;
  stop();
  const video = document.createElement("video");
  // No tabIndex, not even -1: a click would focus the video, which goes away, and not the link.
  Object.assign(video, { muted: true, playsInline: true, preload: "metadata", ariaHidden: "true" });
  video.src = `${hit.url}#t=${hit.start}`;
  video.addEventListener("playing", () => card.classList.add("playing"), { once: true });
  card.querySelector(".frame").append(video);
  card.querySelector(".play").ariaPressed = "true";
  playing = { card, video, hit, frame: requestAnimationFrame(watch) };
  play(video);
}

function watch() {
  const { card, video, hit } = playing;
  // By the picture, not by "timeupdate": that comes four times a second, late enough to show the next clip.
  if (video.ended || video.currentTime >= hit.end - 0.04) {
    video.currentTime = hit.start;
    play(video);
  }
  const done = (video.currentTime - hit.start) / (hit.end - hit.start);
  card.style.setProperty("--done", Math.min(1, Math.max(0, done)));
  playing.frame = requestAnimationFrame(watch);
}

function play(video) {
  video.play().catch((error) => {
    // Left before it began, or a file the browser cannot show: then the picture stays.
    if (error.name !== "AbortError" && error.name !== "NotSupportedError" && error.name !== "NotAllowedError") throw error;
  });
}
