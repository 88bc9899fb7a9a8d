// The example images. Must not know what happens to them.

import { byId, make } from "./elements.js";

const DIGITS = [2, 3, 5, 7].map((digit) => [`digit-${digit}.png`, `A handwritten ${digit}`]);
const PHOTOS = [
  ["cat.jpg", "A cat"],
  ["coffee.jpg", "A cup of coffee"],
  ["rocket.jpg", "A rocket's launch"],
];

/**
 * Show the examples that suit the model, and call `take` with the one that is clicked.
 *
 * The click starts a new turn, and `begin` returns its signal, so an example that loads slowly never replaces a newer
 * choice. Returns a function that takes the first example.
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
      else refuse("The example could not be loaded.");
    });
    return make("li", {}, button);
  });
  byId("examples").replaceChildren(...items);
  return () => items[0].querySelector("button").click();
}

/** Return the content; null if it could not be loaded. */
async function load(url, signal) {
  try {
    const response = await fetch(url, { signal });
    return response.ok ? await response.blob() : null;
  } catch {
    return null;
  }
}
