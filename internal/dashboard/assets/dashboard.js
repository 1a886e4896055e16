"use strict";
// The page is whole without this. With it the overview follows what happens, by Server-Sent Events.
const overview = document.getElementById("overview");
const state = document.getElementById("live");
const reopenAfter = 5000; // ms
let news = null; // HTML that is not shown yet
let pressed = false;

// Whoever is pressing a button or marking text keeps what is there until that is done.
function isInUse() {
  const marked = document.getSelection();
  return pressed || marked && !marked.isCollapsed && overview.contains(marked.anchorNode);
}

function show() {
  if (news === null || isInUse()) return;
  // Whoever is about to press a button or to follow a link keeps it.
  const focused = document.activeElement && overview.contains(document.activeElement) ? document.activeElement.id : "";
  overview.innerHTML = news; // HTML that the server has escaped
  news = null;
  if (focused) {
    const again = document.getElementById(focused);
    if (again) again.focus({ preventScroll: true });
  }
}

function open() {
  const source = new EventSource("/live");
  source.onopen = () => { state.textContent = state.dataset.yes; };
  source.onerror = () => {
    state.textContent = state.dataset.no;
    // A browser tries again by itself, but not after an answer that is none, such as a proxy's while the bridge restarts.
    if (source.readyState === EventSource.CLOSED) setTimeout(open, reopenAfter);
  };
  source.onmessage = (message) => {
    news = JSON.parse(message.data);
    show();
  };
}

addEventListener("pointerdown", () => { pressed = true; });
for (const end of ["pointerup", "pointercancel"]) {
  addEventListener(end, () => setTimeout(() => { pressed = false; show(); })); // after the click that it makes
}
document.addEventListener("selectionchange", show);
open();
