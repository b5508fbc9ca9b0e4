// Searching by a file: dropped anywhere, pasted, or chosen.

const overlay = document.getElementById("drop");
const input = document.getElementById("file");

/** Call `use(file)` with a video or sound that the user gives, `refuse(title, text)` with what is wrong with another. */
export function onFile(use, refuse) {
  const take = (files) => {
    const file = [...files].find(mayBeMedia);
    if (file) use(file);
    else if (files.length) refuse(`${files[0].name} is neither a video nor a sound`, "Give a file such as .mp4, .webm, .mp3 or .wav.");
  };
  document.getElementById("choose").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    take(input.files);
    input.value = ""; // so that the same file may be chosen again
  });

  let depth = 0; // enter and leave come for every element that is crossed
  const over = (there) => {
    depth = there;
    overlay.hidden = depth === 0;
  };
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => holdsFiles(event) && over(depth + 1));
  addEventListener("dragleave", (event) => holdsFiles(event) && over(Math.max(0, depth - 1)));
  addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    over(0);
    take(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => {
    if (!event.clipboardData?.files.length) return;
    event.preventDefault();
    take(event.clipboardData.files);
  });
}

// The system knows no type of some suffixes, such as .mkv: then the service decides.
const mayBeMedia = (file) => file.type === "" || /^(video|audio)\//.test(file.type) || file.type === "application/ogg";
