// Shows what became of one image. Knows nothing of how it was asked.

import { bar, make } from "./elements.js";
import { bytes, milliseconds, percent, plural } from "./words.js";

const SMALL_BYTES = 2 ** 16;
const SOURCES = {
  hit: "From the cache",
  coalesced: "Shared with an identical image under way",
  miss: "Computed",
};

/** Return an image's place in the page: its picture and, once there is one, the outcome. */
export function showOutcome(file, pictureUrl, outcome) {
  const parts = [showFile(file, pictureUrl)];
  if (outcome?.failure) parts.push(showFailure(outcome.failure));
  if (outcome?.answer) parts.push(...(outcome.answer.isOk ? showAnswer(outcome.answer) : [showError(outcome.answer)]));
  return parts;
}

/** Say in a sentence what became of it. Of an error only that there is one: why is said where it is shown. */
export function summarize(file, outcome) {
  if (!outcome.answer?.isOk) return `${file.name} was not classified.`;
  const [top] = outcome.answer.body.predictions;
  return `${file.name}: ${top.label}, ${percent(top.confidence)}`;
}

/** Say where an answer comes from. */
export function source(answer) {
  const name = SOURCES[answer.header("x-cache")] ?? "";
  const size = Number(answer.header("x-batch-size"));
  return size ? `${name} in a batch of ${size}` : name;
}

function showFile(file, pictureUrl) {
  const picture = make("img", { src: pictureUrl, alt: "", width: 96, height: 96 });
  // TIFF, for one, is read by the server and shown by few browsers.
  picture.addEventListener("error", () => picture.classList.add("unknown"));
  const save = make("a", { href: pictureUrl, download: file.name, textContent: "Save the image" });
  const text = make("p", {}, make("strong", { textContent: file.name }), ` ${bytes(file.size)} `, save);
  return make("div", { className: "file" }, picture, text);
}

function showFailure(message) {
  return make("div", { className: "error", role: "alert" }, make("p", { textContent: message }));
}

function showError(answer) {
  const waitS = answer.header("retry-after");
  const details = [
    `Status ${answer.status}`,
    answer.body?.code,
    waitS && `try again in ${waitS} s`,
    answer.body?.request_id && `request ${answer.body.request_id}`,
  ];
  return make(
    "div",
    { className: "error", role: "alert" },
    make("p", { className: "message", textContent: answer.error }),
    make("p", { className: "hint", textContent: details.filter(Boolean).join(" · ") }),
  );
}

function showAnswer(answer) {
  const items = answer.body.predictions.map(({ label, confidence }) =>
    make(
      "li",
      {},
      make("span", { className: "label", textContent: label }),
      make("span", { className: "value", textContent: percent(confidence) }),
      bar(confidence),
    ),
  );
  const isHit = answer.header("x-cache") === "hit";
  const badge = make("p", { className: `badge ${isHit ? "hit" : ""}`, textContent: source(answer) });
  return [make("ol", { className: "bars" }, ...items), badge, ...showTimes(answer)];
}

/**
 * Part the time that an answer took, as the visitor's clock saw it.
 *
 * The server says what the queue and the model took, and what it took from the request's head to the answer. A small
 * body comes with its head, so what is not the server's time is the way there and back. While a large one is under way
 * the server's clock runs; then it counts when the browser had sent the last byte. Browsers tell that too late of a
 * small one. The rest is finding, hashing and decoding the image.
 */
export function timeParts(answer) {
  const reported = (name) => Number(answer.header(name) ?? 0);
  const queueMs = reported("x-queue-time-ms");
  const inferenceMs = reported("x-inference-time-ms");
  const wayMs = answer.totalMs - answer.body.processing_time_ms;
  const isSmall = answer.sentBytes <= SMALL_BYTES || answer.sentMs === null;
  const leftMs = Math.max(0, answer.totalMs - queueMs - inferenceMs);
  const uploadMs = Math.min(leftMs, Math.max(0, isSmall ? wayMs : Math.max(wayMs, answer.sentMs)));
  return [
    ["Upload", uploadMs, "upload"],
    ["Queue", queueMs, "queue"],
    ["Inference", inferenceMs, "inference"],
    ["Rest", leftMs - uploadMs, "rest"],
  ];
}

function showTimes(answer) {
  const parts = timeParts(answer);
  const wasRun = answer.header("x-inference-time-ms") !== null;
  const strip = make("div", { className: "strip", "aria-hidden": "true" });
  const list = make("dl", { className: "times" });
  for (const [name, ms, className] of parts) {
    const segment = make("span", { className });
    segment.style.setProperty("--share", (ms / Math.max(answer.totalMs, 0.001)).toFixed(4));
    strip.append(segment);
    const isNone = !wasRun && (className === "queue" || className === "inference");
    list.append(
      make("div", {}, make("dt", { className, textContent: name }), make("dd", { textContent: isNone ? "none" : milliseconds(ms) })),
    );
  }
  list.append(make("div", {}, make("dt", { textContent: "Total" }), make("dd", { textContent: milliseconds(answer.totalMs) })));
  return [strip, list];
}

/** Return the cells of an image's row, of which the first shows the rest of it. */
export function showRow(file, outcome, choose) {
  const name = make("button", { type: "button", className: "link", textContent: file.name, disabled: !outcome });
  name.addEventListener("click", choose);
  const cells = [make("th", { scope: "row" }, name)];
  if (!outcome) return [...cells, make("td", { colSpan: 4, className: "hint", textContent: "waits" })];
  if (outcome.failure || !outcome.answer.isOk) {
    return [...cells, make("td", { colSpan: 4, className: "wrong", textContent: outcome.failure ?? outcome.answer.error })];
  }
  const { answer } = outcome;
  const [top] = answer.body.predictions;
  const texts = [top.label, percent(top.confidence), milliseconds(answer.totalMs), source(answer)];
  return [...cells, ...texts.map((text, column) => make("td", { textContent: text, className: column % 3 ? "number" : "" }))];
}

/** Say how several images did. */
export function summarizeAll(outcomes) {
  const right = outcomes.filter((outcome) => outcome?.answer?.isOk).length;
  const wrong = outcomes.filter(Boolean).length - right;
  const done = `${plural(right, "image")} of ${outcomes.length} classified`;
  return wrong ? `${done}, ${wrong} with an error` : done;
}
