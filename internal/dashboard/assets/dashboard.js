"use strict";
// The page works without this script. The script updates the overview by Server-Sent Events.
const overview = document.getElementById("overview");
const state = document.getElementById("live");
const reopenAfter = 5000; // ms
let news = null; // the newest HTML of the overview, until it is shown
let pressed = false;

// The overview is not replaced while a button is pressed or text is selected.
function isInUse() {
  const marked = document.getSelection();
  return pressed || marked && !marked.isCollapsed && overview.contains(marked.anchorNode);
}

function show() {
  if (news === null || isInUse()) return;
  // The focused button or link keeps the focus.
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
    // A browser reconnects by itself, except after an error response, such as a proxy's during a
    // restart of the bridge.
    if (source.readyState === EventSource.CLOSED) setTimeout(open, reopenAfter);
  };
  source.onmessage = (message) => {
    news = JSON.parse(message.data);
    show();
  };
}

addEventListener("pointerdown", () => { pressed = true; });
for (const end of ["pointerup", "pointercancel"]) {
  addEventListener(end, () => setTimeout(() => { pressed = false; show(); })); // after the click event
}
document.addEventListener("selectionchange", show);
open();
