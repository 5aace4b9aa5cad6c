() => {  // on a phone the viewer may be scrolled out of view
  const viewer = document.querySelector("#xg-viewer");
  const box = viewer.getBoundingClientRect();
  if (box.bottom < 80 || box.top > innerHeight - 80) viewer.scrollIntoView({ block: "center" });
}
