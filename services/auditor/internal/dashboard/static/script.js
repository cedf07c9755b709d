// Looks again when the auditor says so, and puts what has changed in place. The
// page is whole without this: then it reloads itself.
"use strict";

const source = document.body.dataset.live;
const live = document.getElementById("live");
let looking = false, again = false;

async function look() {
  if (looking) { again = true; return; }
  looking = true;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
    if (answer.redirected) { location.reload(); return; }
    if (answer.ok) replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
  } catch {
    live.classList.add("lost");
  } finally {
    looking = false;
    if (again) { again = false; look(); }
  }
}

// replace swaps the regions that differ; what had the focus, or was scrolled, or
// selected, stays as it was.
function replace(page) {
  for (const region of document.querySelectorAll("[data-region]")) {
    const next = page.getElementById(region.id);
    if (!next || region.innerHTML === next.innerHTML && region.className === next.className) continue;
    if (region.contains(document.getSelection().anchorNode) && !document.getSelection().isCollapsed) continue;
    const focus = region.contains(document.activeElement) ? place(region, document.activeElement) : null;
    const left = [...region.querySelectorAll(".scroll")].map((e) => e.scrollLeft);
    region.replaceChildren(...document.importNode(next, true).childNodes);
    region.querySelectorAll(".scroll").forEach((e, i) => { e.scrollLeft = left[i] || 0; });
    if (focus) find(region, focus)?.focus({ preventScroll: true });
  }
  const said = document.getElementById("said"), says = page.getElementById("said");
  if (said && says && said.textContent !== says.textContent) said.textContent = says.textContent;
  live.classList.remove("lost");
  document.title = page.title;
}

const reachable = "a, button, input, [tabindex]";
function place(region, element) {
  return { href: element.getAttribute("href"), n: [...region.querySelectorAll(reachable)].indexOf(element) };
}
function find(region, { href, n }) {
  const all = [...region.querySelectorAll(reachable)];
  return href && all.find((e) => e.getAttribute("href") === href) || all[n];
}

if (source) {
  const events = new EventSource(source);
  events.addEventListener("look", look);
  events.onopen = () => { live.classList.add("on"); live.classList.remove("lost"); };
  events.onerror = () => {
    live.classList.remove("on");
    if (events.readyState === EventSource.CLOSED) setInterval(look, 10000); // too many watch, or no session any more
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
}
