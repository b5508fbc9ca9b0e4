// Why a hit was found: how far each kind of vector lies above what a clip chosen at random gets.

import { short } from "./format.js";

const NAMES = { video: "Seen", audio: "Heard", "video-audio": "Both" };
const FOUND = { video: "Found by what is seen", audio: "Found by what is heard", "video-audio": "Found by both together" };
const FULL = 4; // standard deviations that fill a bar: about one clip in 30,000 by chance
const template = document.getElementById("why");

/** Fill `place` with an explanation of the service's, or empty it. */
export function showWhy(place, explanation) {
  place.replaceChildren();
  if (!explanation) return;
  const part = template.content.cloneNode(true);
  part.querySelector(".found").textContent = FOUND[explanation.strongest] ?? `Found by ${explanation.strongest}`;
  const list = part.querySelector("dl");
  const order = [...new Set([...Object.keys(NAMES), ...Object.keys(explanation.matches)])];
  for (const encoder of order.filter((name) => name in explanation.matches)) {
    const { cosine, standard_score: score } = explanation.matches[encoder];
    const name = document.createElement("dt");
    name.textContent = NAMES[encoder] ?? encoder;
    const value = document.createElement("dd");
    const track = document.createElement("span");
    track.className = "track";
    track.ariaHidden = "true";
    const bar = document.createElement("span");
    bar.style.setProperty("--part", Math.min(1, Math.max(0, score / FULL)));
    track.append(bar);
    const number = document.createElement("span");
    number.className = "number";
    number.textContent = `${score < 0 ? "−" : "+"}${short(Math.abs(score))}`;
    value.title = `cosine ${cosine.toFixed(3)}, ${short(score)} standard deviations from a clip chosen at random`;
    value.append(track, number);
    list.append(name, value);
  }
  place.append(part);
}
