// Runs once for each element with veils; `element` and `watch` are Gradio's. The server sends every
// veil closed: what the visitor has lifted is remembered here, by run, and opened again.
const lifted = new Set();
const apply = () => {
  element.querySelectorAll(".vg-veil").forEach((veil, at) => {
    const open = lifted.has(`${veil.dataset.run} ${at}`);
    veil.classList.toggle("open", open);
    veil.querySelector(".content").inert = !open;
    veil.querySelector(".lift").setAttribute("aria-expanded", String(open));
  });
};
element.addEventListener("click", (event) => {
  const lift = event.target.closest(".lift");
  if (!lift) return;
  const veil = lift.closest(".vg-veil");
  const at = [...element.querySelectorAll(".vg-veil")].indexOf(veil);
  lifted.add(`${veil.dataset.run} ${at}`);
  apply();
  const content = veil.querySelector(".content");
  content.tabIndex = 0; // long answers scroll
  content.focus({ preventScroll: true });
});
watch("value", apply);
apply();
