"use strict";
// The page is whole without this. With it the overview follows what happens, by Server-Sent Events.
const overview = document.getElementById("overview");
const state = document.getElementById("live");
const source = new EventSource("/live");
source.onopen = () => { state.textContent = state.dataset.yes; };
source.onerror = () => { state.textContent = state.dataset.no; };
source.onmessage = (message) => {
  // Whoever is about to press a button or to follow a link keeps it.
  const focused = document.activeElement && overview.contains(document.activeElement) ? document.activeElement.id : "";
  overview.innerHTML = JSON.parse(message.data); // HTML that the server has escaped
  if (focused) {
    const again = document.getElementById(focused);
    if (again) again.focus({ preventScroll: true });
  }
};
