// Zoom and pan by wheel, drag, buttons and keys. The image itself is rendered in Python.
const state = { zoom: 1, x: 0, y: 0 };
const apply = () => {
  const box = element.querySelector(".xg-box");
  const room = box ? [box.clientWidth, box.clientHeight].map((n) => (n * (state.zoom - 1)) / 2) : [0, 0];
  state.x = Math.max(-room[0], Math.min(room[0], state.x));
  state.y = Math.max(-room[1], Math.min(room[1], state.y));
  element.style.setProperty("--xg-z", state.zoom);
  element.style.setProperty("--xg-x", `${state.x}px`);
  element.style.setProperty("--xg-y", `${state.y}px`);
};
const zoomTo = (zoom) => {
  const next = Math.max(1, Math.min(8, zoom));
  state.x *= next / state.zoom;
  state.y *= next / state.zoom;
  state.zoom = next;
  apply();
};
const keys = {
  "+": () => zoomTo(state.zoom * 1.25), "=": () => zoomTo(state.zoom * 1.25),
  "-": () => zoomTo(state.zoom / 1.25), "0": () => zoomTo(1),
  ArrowLeft: () => { state.x += 40; apply(); }, ArrowRight: () => { state.x -= 40; apply(); },
  ArrowUp: () => { state.y += 40; apply(); }, ArrowDown: () => { state.y -= 40; apply(); },
};
const buttons = { in: "+", out: "-", all: "0" };
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-zoom]");
  if (button) keys[buttons[button.dataset.zoom]]();
});
element.addEventListener("keydown", (event) => {
  const move = keys[event.key];
  if (!move || (event.key.startsWith("Arrow") && state.zoom === 1)) return;
  event.preventDefault();
  move();
});
element.addEventListener("wheel", (event) => {
  if (!event.target.closest(".xg-box") || !(event.ctrlKey || event.metaKey || state.zoom > 1)) return;
  event.preventDefault();
  zoomTo(state.zoom * (event.deltaY < 0 ? 1.1 : 1 / 1.1));
}, { passive: false });
let grabbed = null;
element.addEventListener("pointerdown", (event) => {
  if (state.zoom === 1 || !event.target.closest(".xg-box")) return;
  grabbed = [event.clientX - state.x, event.clientY - state.y];
  event.preventDefault();
});
window.addEventListener("pointermove", (event) => {
  if (!grabbed) return;
  [state.x, state.y] = [event.clientX - grabbed[0], event.clientY - grabbed[1]];
  apply();
});
window.addEventListener("pointerup", () => { grabbed = null; });
let label = "";
watch("value", () => {  // a new image is shown without zoom
  const now = element.querySelector(".xg-film")?.alt ?? "";
  if (now !== label) zoomTo(1);
  label = now;
});
