// The images that come with the page. Knows nothing of what becomes of them.

import { byId, make } from "./elements.js";

const DIGITS = [2, 3, 5, 7].map((digit) => [`digit-${digit}.png`, `A handwritten ${digit}`]);
const PHOTOS = [
  ["cat.jpg", "A cat"],
  ["coffee.jpg", "A cup of coffee"],
  ["rocket.jpg", "A rocket's launch"],
];

/**
 * Show those that suit the model, and call `take` with one that is clicked.
 *
 * The click itself begins a turn, whose signal `begin` returns: a slow example never replaces what is newer.
 */
export function showExamples(isDigits, begin, take, refuse) {
  const items = (isDigits ? DIGITS : PHOTOS).map(([name, title]) => {
    const url = new URL(`page/examples/${name}`, document.baseURI).href;
    const image = make("img", { src: url, alt: title, width: 72, height: 72 });
    const button = make("button", { type: "button", title }, image);
    button.addEventListener("click", async () => {
      const signal = begin();
      const content = await load(url, signal);
      if (signal.aborted) return;
      if (content) take([new File([content], name, { type: content.type })], signal);
      else refuse("The example can't be loaded.");
    });
    return make("li", {}, button);
  });
  byId("examples").replaceChildren(...items);
}

/** Return what is there; null if there is nothing, or no answer. */
async function load(url, signal) {
  try {
    const response = await fetch(url, { signal });
    return response.ok ? await response.blob() : null;
  } catch {
    return null;
  }
}
