() => {
  // Gradio's date fields have no name, and open a calendar by a button without one.
  const name = () =>
    document.querySelectorAll(".timebox:not([data-named])").forEach((box) => {
      const label = box.parentElement.querySelector("[data-testid=block-info]")?.textContent.trim();
      if (!label) return;
      box.querySelector("input").setAttribute("aria-label", label);
      box.querySelector("button").setAttribute("aria-label", `Calendar: ${label}`);
      box.dataset.named = "";
    });
  new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
  name();
}
