// What stands in place of results: how to begin, that nothing was found, that something went wrong. And what is said to
// those who hear the page.

const region = document.getElementById("notice");
const live = document.getElementById("live");
const again = region.querySelector(".again");
const key = region.querySelector(".key");
let counting = 0;
let retry = null;
let submitKey = null;

again.querySelector("button").addEventListener("click", () => retryNow());
key.addEventListener("submit", (event) => {
  event.preventDefault();
  const { value } = key.elements[0];
  key.reset();
  submitKey(value);
});
addEventListener("online", () => retryNow());

/** Say it to screen readers, once what they are reading is done. */
export function say(text) {
  live.textContent = text;
}

/**
 * Show a notice.
 *
 * `code`: a command to copy. `onRetry`: offers to try again; with `seconds`, does so by itself after that time.
 * `onKey`: asks for an API key and is called with it.
 */
export function showNotice({ title, text = "", code = "", trouble = false, onRetry = null, seconds = null, onKey = null }) {
  hideNotice();
  region.querySelector("h2").textContent = title;
  region.querySelector(".text").textContent = text;
  region.querySelector("code").textContent = code;
  region.querySelector("pre").hidden = !code;
  region.classList.toggle("trouble", trouble);
  submitKey = onKey;
  key.hidden = !onKey;
  retry = onRetry;
  again.hidden = !onRetry;
  again.querySelector("span").textContent = "";
  if (onRetry && seconds !== null) countDown(Math.max(1, Math.ceil(seconds)));
  region.hidden = false;
}

/** Whether a notice of something that went wrong is shown. */
export const isTrouble = () => !region.hidden && region.classList.contains("trouble");

/** Hide the notice, and give up trying again. */
export function hideNotice() {
  region.hidden = true;
  retry = null;
  clearTimeout(counting);
}

function countDown(seconds) {
  again.querySelector("span").textContent = `or by itself in ${seconds} s`;
  counting = setTimeout(() => (seconds > 1 ? countDown(seconds - 1) : retryNow()), 1000);
}

function retryNow() {
  const action = retry;
  if (!action) return;
  clearTimeout(counting);
  action();
}
