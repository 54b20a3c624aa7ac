() => {
  // Gradio's date fields open a calendar by a button without a name.
  const name = () =>
    document.querySelectorAll("button.calendar:not([aria-label])").forEach((button) => {
      button.setAttribute("aria-label", "Open the calendar");
    });
  new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
  name();
}
