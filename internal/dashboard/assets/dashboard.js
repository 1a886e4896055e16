"use strict";
// The pages work without this script. The script updates the live part of a page by Server-Sent
// Events, and ticks all boxes of a list at once.
const part = document.querySelector("[data-live]");
const state = document.getElementById("live");
const reopenAfter = 5000; // ms
let news = null; // the newest HTML of the live part, until it is shown
let pressed = false;

// The part is not replaced while a button is pressed or text is selected.
function isInUse() {
  const marked = document.getSelection();
  return pressed || marked && !marked.isCollapsed && part.contains(marked.anchorNode);
}

function show() {
  if (news === null || isInUse()) return;
  // The focused element keeps the focus, and each fold stays open or closed, as the reader left it.
  const focused = document.activeElement && part.contains(document.activeElement) ? document.activeElement : null;
  const focusedFold = focused && focused.localName === "summary" ? focused.parentElement.id : "";
  const folds = new Map([...part.querySelectorAll("details[id]")].map((fold) => [fold.id, fold.open]));
  part.innerHTML = news; // HTML that the server has escaped
  news = null;
  for (const fold of part.querySelectorAll("details[id]")) {
    if (folds.has(fold.id)) fold.open = folds.get(fold.id);
  }
  const again = focusedFold ? document.getElementById(focusedFold)?.querySelector("summary")
    : focused && focused.id ? document.getElementById(focused.id) : null;
  if (again) again.focus({ preventScroll: true });
}

function open() {
  const source = new EventSource(part.dataset.live);
  const say = (text, isOn) => { state.textContent = text; state.classList.toggle("on", isOn); };
  source.onopen = () => say(state.dataset.yes, true);
  source.onerror = () => {
    say(state.dataset.no, false);
    // A browser reconnects by itself, except after an error response, such as a proxy's during a
    // restart of the bridge.
    if (source.readyState === EventSource.CLOSED) setTimeout(open, reopenAfter);
  };
  source.onmessage = (message) => {
    news = JSON.parse(message.data);
    show();
  };
}

if (part && state) {
  addEventListener("pointerdown", () => { pressed = true; });
  for (const end of ["pointerup", "pointercancel"]) {
    addEventListener(end, () => setTimeout(() => { pressed = false; show(); })); // after the click event
  }
  document.addEventListener("selectionchange", show);
  open();
}

// A link to a delivery opens its fold.
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.localName === "details") target.open = true;
}
addEventListener("hashchange", openTarget);
openTarget();

const tickAll = document.getElementById("tick-all");
if (tickAll) {
  tickAll.hidden = false;
  tickAll.addEventListener("change", () => {
    for (const box of document.querySelectorAll("input[name=id]")) box.checked = tickAll.checked;
  });
}
