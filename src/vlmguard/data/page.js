const veils = [...document.querySelectorAll(".veiled")];
const all = document.getElementById("all");
let allOpen = false;

veils.forEach(closeVeil);
all.hidden = veils.length === 0;
all.addEventListener("click", () => {
  allOpen = !allOpen;
  veils.forEach((veil) => setVeil(veil, allOpen));
  all.textContent = allOpen ? "Hide risky text" : "Show risky text";
  all.setAttribute("aria-pressed", String(allOpen));
});
document.getElementById("verdict").addEventListener("change", (event) => {
  for (const record of document.querySelectorAll(".record")) {
    record.hidden = event.target.value !== "all" && record.dataset.verdict !== event.target.value;
  }
});
