// Light or dark: the system's choice unless another was made here. A plain script in the head, so that the first paint
// has the right colours.
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const stored = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null; // storage is forbidden: the system's choice holds
    }
  };

  function apply(theme) {
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
    const dark = theme ? theme === "dark" : system.matches;
    root.classList.toggle("dark", dark);
    const button = document.getElementById("theme");
    if (button) button.title = button.ariaLabel = dark ? "Light colours" : "Dark colours";
  }

  apply(stored());
  system.addEventListener("change", () => apply(stored()));
  addEventListener("storage", () => apply(stored()));
  document.addEventListener("DOMContentLoaded", () => {
    apply(stored());
    document.getElementById("theme").addEventListener("click", () => {
      const next = root.classList.contains("dark") ? "light" : "dark";
      const chosen = (next === "dark") === system.matches ? "" : next;
      try {
        localStorage.setItem("theme", chosen);
      } catch {
        // storage is forbidden: the choice lasts as long as the page
      }
      apply(chosen);
    });
  });
})();
