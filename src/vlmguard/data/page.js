"use strict";
const veils = [...document.querySelectorAll(".veiled")];
const all = document.getElementById("all");
let allOpen = false;

function set(veil, open) {
  veil.classList.toggle("open", open);
  veil.querySelector(".content").inert = !open;
}

for (const veil of veils) {
  set(veil, false);
  const content = veil.querySelector(".content");
  content.tabIndex = -1;
  veil.querySelector(".lift").addEventListener("click", () => {
    set(veil, true);
    content.focus({ preventScroll: true });
  });
}
all.hidden = veils.length === 0;
all.addEventListener("click", () => {
  allOpen = !allOpen;
  veils.forEach((veil) => set(veil, allOpen));
  all.textContent = allOpen ? "Hide risky text" : "Show risky text";
  all.setAttribute("aria-pressed", String(allOpen));
});
document.getElementById("verdict").addEventListener("change", (event) => {
  for (const record of document.querySelectorAll(".record")) {
    record.hidden = event.target.value !== "all" && record.dataset.verdict !== event.target.value;
  }
});
