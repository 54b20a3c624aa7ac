/* A veil is an element of class veiled around a .content and the button .lift that opens it. */
function setVeil(veil, open) {
  veil.classList.toggle("open", open);
  veil.querySelector(".content").inert = !open;
}

function closeVeil(veil) {
  setVeil(veil, false);
  const content = veil.querySelector(".content");
  content.tabIndex = -1;
  veil.querySelector(".lift").addEventListener("click", () => {
    setVeil(veil, true);
    content.focus({ preventScroll: true });
  });
}
