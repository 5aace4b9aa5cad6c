(element) => {
  const root = element.querySelector(".xg-cine");
  if (!root || root.dataset.started) return;
  root.dataset.started = "yes";
  const { clips, first } = JSON.parse(root.dataset.clips);
  delete root.dataset.clips;
  const part = (name) => root.querySelector(`[data-cine="${name}"]`);
  const canvas = root.querySelector("canvas");
  const context = canvas.getContext("2d");
  const state = { clip: 0, frame: 0, playing: false, since: 0 };
  const pictures = new Map();  // decoded sheets of each clip that was shown

  const decode = async (uri) => {
    const image = new Image();
    image.src = uri;
    await image.decode();
    return createImageBitmap(image);
  };
  const load = (number) => {
    if (!pictures.has(number)) {
      const { sheets, overlays } = clips[number];
      pictures.set(number, null);
      Promise.all([Promise.all(sheets.map(decode)), Promise.all(overlays.map(decode))]).then(
        (decoded) => { pictures.set(number, decoded); draw(); },
        () => { part("caption").textContent = "The images of this clip cannot be shown."; },
      );
    }
    return pictures.get(number);
  };
  const draw = () => {
    const clip = clips[state.clip];
    const [width, height] = clip.size;
    const decoded = load(state.clip);
    const time = clip.times ? ` · ${Math.round(clip.times[state.frame] * 1000)} ms` : "";
    part("place").textContent = `frame ${state.frame + 1} of ${clip.count}${time}`;
    part("frame").value = state.frame;
    if (!decoded) return;
    const sheet = Math.floor(state.frame / clip.perSheet);
    const place = state.frame % clip.perSheet;
    const x = (place % clip.columns) * width;
    const y = Math.floor(place / clip.columns) * height;
    const layers = part("contours").checked ? decoded : decoded.slice(0, 1);
    for (const layer of layers) {
      if (layer.length) context.drawImage(layer[sheet], x, y, width, height, 0, 0, width, height);
    }
    root.dataset.frame = state.frame;
  };
  const show = (frame) => {
    const count = clips[state.clip].count;
    state.frame = ((frame % count) + count) % count;
    draw();
  };
  const choose = (number) => {
    const before = clips[state.clip];
    state.clip = Math.max(0, Math.min(clips.length - 1, number));
    const clip = clips[state.clip];
    [canvas.width, canvas.height] = clip.size;
    canvas.setAttribute("aria-label", clip.caption);
    part("clip").value = state.clip;
    part("frame").max = clip.count - 1;
    part("caption").textContent = clip.caption;
    part("legend").replaceChildren(...clip.legend.map(([name, colour]) => {
      const item = document.createElement("li");
      const mark = document.createElement("i");
      mark.style.background = colour;
      item.append(mark, name);
      return item;
    }));
    show(Math.floor((state.frame * clip.count) / before.count));  // the same part of the cycle
  };
  const tick = (now) => {
    if (!state.playing || !root.isConnected) return;
    const clip = clips[state.clip];
    const speed = Number(part("speed").value);
    let steps = 0;
    while (now - state.since >= (clip.seconds[(state.frame + steps) % clip.count] * 1000) / speed) {
      state.since += (clip.seconds[(state.frame + steps) % clip.count] * 1000) / speed;
      steps += 1;
      if (steps > clip.count) state.since = now;  // the page was in the background
    }
    if (steps) show(state.frame + steps);
    requestAnimationFrame(tick);
  };
  const play = (on) => {
    const start = on && !state.playing;
    state.playing = on;
    part("play").textContent = on ? "\u275A\u275A" : "\u25B6\uFE0E";
    part("play").setAttribute("aria-label", on ? "Pause" : "Play");
    if (!start) return;
    state.since = performance.now();
    requestAnimationFrame(tick);
  };
  const step = (by) => { play(false); show(state.frame + by); };
  const toggle = () => { part("contours").checked = !part("contours").checked; draw(); };
  const clicks = { play: () => play(!state.playing), back: () => step(-1), next: () => step(1) };
  root.addEventListener("click", (event) => {
    const action = clicks[event.target.closest("button")?.dataset.cine];
    if (action) action();
  });
  part("frame").addEventListener("input", (event) => { play(false); show(Number(event.target.value)); });
  part("clip").addEventListener("change", (event) => choose(Number(event.target.value)));
  part("contours").addEventListener("change", draw);
  const keys = {
    " ": clicks.play, ArrowLeft: clicks.back, ArrowRight: clicks.next,
    ArrowUp: () => choose(state.clip - 1), ArrowDown: () => choose(state.clip + 1), c: toggle, C: toggle,
  };
  root.addEventListener("keydown", (event) => {
    const own = event.target.matches("button, input[type=checkbox]") ? [" "]
      : event.target.matches("select, input") ? [" ", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"] : [];
    if (event.ctrlKey || event.metaKey || event.altKey || own.includes(event.key) || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  choose(first);
  play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
}
