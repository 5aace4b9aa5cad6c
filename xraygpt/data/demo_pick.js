// Buttons inside HTML: sends Python the data-pick value of the pressed one.
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-pick]");
  if (!button) return;
  element.querySelectorAll("[data-pick]").forEach((other) => other.removeAttribute("aria-pressed"));
  button.setAttribute("aria-pressed", "true");
  trigger("click", { pick: button.dataset.pick });
});
