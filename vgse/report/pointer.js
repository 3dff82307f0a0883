"use strict";
// What every page shares: the tip beside the pointer, and finding what is under it.
const tip = document.getElementById("tip");

function show(event, text, picture) {
  tip.textContent = text;
  if (picture) tip.prepend(picture);
  tip.hidden = false;
  const { offsetWidth: width, offsetHeight: height } = tip;
  const left = Math.min(event.clientX + 14, document.documentElement.clientWidth - width - 6);
  const above = event.clientY + 16 + height > document.documentElement.clientHeight;
  tip.style.left = Math.max(6, left) + "px";
  tip.style.top = Math.max(6, above ? event.clientY - height - 12 : event.clientY + 16) + "px";
}

function watch(element, move, leave) {
  element.addEventListener("pointermove", move);
  element.addEventListener("pointerdown", move);
  element.addEventListener("pointerleave", () => {
    tip.hidden = true;
    if (leave) leave();
  });
}

// Position of the pointer inside an element, as shares of its size.
function inside(event, element) {
  const box = element.getBoundingClientRect();
  const share = (value) => Math.min(0.9999, Math.max(0, value));
  return [share((event.clientX - box.left) / box.width), share((event.clientY - box.top) / box.height)];
}

function nearest(points, x, y) {
  let best = -1;
  let least = Infinity;
  points.forEach(([a, b], i) => {
    const distance = (a - x) ** 2 + (b - y) ** 2;
    if (distance < least) [best, least] = [i, distance];
  });
  return [best, Math.sqrt(least)];
}
