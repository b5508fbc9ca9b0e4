// Keys: / to the words, arrows through the clips, Escape closes what is open. (Enter on a clip opens it as any link.)

import { closeFilters } from "./filters.js";
import { cancelRecording } from "./microphone.js";
import { focusFirst, moveFocus } from "./results.js";

const words = document.getElementById("words");
const player = document.getElementById("player");
const ARROWS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"];

addEventListener("keydown", (event) => {
  if (player.open || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const typing = event.target.matches("input:not([type=range], [type=checkbox]), select, textarea");
  const card = event.target.closest(".card");
  let done = false;
  if (event.key === "/" && !typing) {
    words.focus();
    words.select();
    done = true;
  } else if (event.key === "Escape") {
    done = cancelRecording() || closeFilters();
  } else if (event.key === "ArrowDown" && event.target === words) {
    done = focusFirst();
  } else if (card && ARROWS.includes(event.key)) {
    done = true; // also at an edge: the page must not scroll away under the focus
    if (!moveFocus(card, event.key) && event.key === "ArrowUp") words.focus();
  }
  if (done) event.preventDefault();
});
