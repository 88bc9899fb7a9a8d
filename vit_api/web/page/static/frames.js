// Shows the results of an animation's frames. Must not know how they were requested.

import { make } from "./elements.js";
import { percent } from "./format.js";

/** Return the elements for the frames of a response; none if it has none. */
export function showFrames(frames) {
  if (!frames) return [];
  const items = frames.map(({ index, time_ms: timeMs, predictions: [top] }) => {
    const time = timeMs === null ? "" : ` at ${(timeMs / 1000).toFixed(2)} s`;
    const text = top ? `${top.label}, ${percent(top.confidence)}` : "no class";
    return make("li", { textContent: `Frame ${index + 1}${time}: ${text}` });
  });
  return [make("h3", { textContent: "Frames" }), make("ol", { className: "frames", ariaLabel: "Frames" }, ...items)];
}
