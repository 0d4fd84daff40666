// Slides: the book's theme, and keys that go from one picture to the next.
const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)");
const kept = () => { try { return localStorage.getItem("mode"); } catch { return null; } };
const paint = () => { root.dataset.theme = ["light", "dark"].includes(kept()) ? kept() : dark.matches ? "dark" : "light"; };
const steps = { ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1, Home: -1e9, End: 1e9 };
paint();
dark.addEventListener("change", paint);
addEventListener("beforeprint", () => { root.dataset.theme = "light"; });
addEventListener("afterprint", paint);
addEventListener("keydown", (event) => {
  const step = steps[event.key];
  if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const slides = [...document.querySelectorAll("section")];
  const far = slides.map((slide) => Math.abs(slide.getBoundingClientRect().top));
  const here = far.indexOf(Math.min(...far));
  slides[Math.min(Math.max(here + step, 0), slides.length - 1)].scrollIntoView();
});
