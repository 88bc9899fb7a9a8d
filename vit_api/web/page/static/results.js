// Shows the result of an image. Must not know how it was requested.

import { isDrawn } from "./drawing.js";
import { bar, make } from "./elements.js";
import { showFrames } from "./frames.js";
import { bytes, milliseconds, percent, plural } from "./format.js";
import { nameOf } from "./served.js";

const SMALL_BYTES = 2 ** 16;
const SOURCES = {
  hit: "From cache",
  coalesced: "Shared with an identical request",
  miss: "Computed",
};

/** Return the elements for an image: its thumbnail and, once there is one, the outcome. */
export function showOutcome(file, pictureUrl, outcome) {
  const parts = [showFile(file, pictureUrl, outcome?.scaledBytes)];
  if (outcome?.other) parts.push(showPair([outcome, outcome.other]));
  else if (outcome) parts.push(...showParts(outcome));
  return parts;
}

function showParts(outcome) {
  if (outcome.failure) return [showFailure(outcome.failure)];
  return outcome.answer.isOk ? showAnswer(outcome.answer, outcome.thresholds) : [showError(outcome.answer)];
}

function showPair(outcomes) {
  return make("div", { className: "pair" }, ...outcomes.map((outcome) => make("div", {}, ...showParts(outcome))));
}

/** Return a one-line summary. For an error it gives no reason, since the error itself is shown too. */
export function summarize(file, outcome) {
  if (!outcome.other) return outcome.answer?.isOk ? `${file.name}: ${shortly(outcome)}` : `${file.name} was not classified.`;
  return `${file.name}: ${shortly(outcome)} · ${shortly(outcome.other)}`;
}

function shortly({ answer }) {
  if (!answer?.isOk) return "not classified";
  const { predictions, flagged } = answer.body;
  const verdict = flagged ? ", flagged" : "";
  return predictions.length ? `${predictions[0].label}, ${percent(predictions[0].confidence)}${verdict}` : `no class${verdict}`;
}

/** Return where a result comes from. */
export function source(answer) {
  const name = SOURCES[answer.header("x-cache")] ?? "";
  const size = Number(answer.header("x-batch-size"));
  return size ? `${name} in a batch of ${size}` : name;
}

function showFile(file, pictureUrl, scaledBytes) {
  const picture = make("img", { src: pictureUrl, alt: "", width: 96, height: 96 });
  // A file that is no image, or that only the server reads, such as TIFF, leaves no blank square.
  picture.addEventListener("error", () => picture.remove());
  const size = scaledBytes ? `${bytes(file.size)}, scaled down to ${bytes(scaledBytes)}` : bytes(file.size);
  const text = make("p", {}, make("strong", { textContent: file.name }), ` ${size} `);
  // Only a drawing is not a file of the user's already.
  if (isDrawn(file)) text.append(make("a", { href: pictureUrl, download: file.name, textContent: "Save image" }));
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
    waitS && `retry in ${waitS} s`,
    answer.body?.request_id && `request ${answer.body.request_id}`,
  ];
  return make(
    "div",
    { className: "error", role: "alert" },
    make("p", { className: "message", textContent: answer.error }),
    make("p", { className: "hint", textContent: details.filter(Boolean).join(" · ") }),
  );
}

function showAnswer(answer, thresholds) {
  const { body } = answer;
  const items = body.predictions.map((prediction) => showPrediction(prediction, thresholds));
  const isHit = answer.header("x-cache") === "hit";
  const badge = make("span", { className: `badge ${isHit ? "hit" : ""}`, textContent: source(answer) });
  const name = make("span", { className: "answered hint", textContent: `by ${nameOf(body)}` });
  return [
    make("ol", { className: "bars" }, ...items),
    ...showVerdict(body),
    ...showFrames(body.frames),
    make("p", { className: "row source" }, badge, name),
    ...showTimes(answer),
  ];
}

function showPrediction({ label, confidence, flagged }, thresholds) {
  const mark = flagged ? [" ", make("strong", { className: "mark", textContent: "flagged" })] : [];
  const threshold = thresholds?.[label] ?? thresholds?.["*"];
  const limit = threshold === undefined ? [] : [make("span", { className: "limit", textContent: `threshold ${percent(threshold)}` })];
  return make(
    "li",
    { className: flagged ? "flagged" : "" },
    make("span", {}, make("span", { className: "label" }, label, ...mark), ...limit),
    make("span", { className: "value", textContent: percent(confidence) }),
    bar(confidence),
  );
}

/** Return whether the image is flagged: by all labels of the model, of which the list above may show only a few. */
function showVerdict({ flagged, predictions, thresholds_digest: digest }) {
  if (flagged === undefined) return [];
  const isHidden = flagged && !predictions.some((one) => one.flagged);
  const text = flagged ? (isHidden ? "Flagged, by a label that is not shown" : "Flagged") : "Not flagged";
  return [make("p", { className: `verdict ${flagged ? "flagged" : ""}`, textContent: `${text} · thresholds ${digest}` })];
}

/**
 * Split the time that a request took, as measured in the browser, into its parts.
 *
 * The server reports the time in the queue and in the model, and its time from the request's head to the response. A
 * small body arrives with the head, so everything that is not the server's time is network time. A large body is still
 * being sent while the server's clock runs, so there the time until the browser sent the last byte counts; browsers
 * report that too late for small bodies. The rest is parsing, hashing and decoding.
 */
export function timeParts(answer) {
  const reported = (name) => Number(answer.header(name) ?? 0);
  const queueMs = reported("x-queue-time-ms");
  const inferenceMs = reported("x-inference-time-ms");
  const networkMs = answer.totalMs - answer.body.processing_time_ms;
  const isSmall = answer.sentBytes <= SMALL_BYTES || answer.sentMs === null;
  const leftMs = Math.max(0, answer.totalMs - queueMs - inferenceMs);
  const uploadMs = Math.min(leftMs, Math.max(0, isSmall ? networkMs : Math.max(networkMs, answer.sentMs)));
  return [
    ["Network", uploadMs, "upload"],
    ["Queue", queueMs, "queue"],
    ["Inference", inferenceMs, "inference"],
    ["Other", leftMs - uploadMs, "rest"],
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
      make("div", {}, make("dt", { className, textContent: name }), make("dd", { textContent: isNone ? "–" : milliseconds(ms) })),
    );
  }
  list.append(make("div", {}, make("dt", { textContent: "Total" }), make("dd", { textContent: milliseconds(answer.totalMs) })));
  return [strip, list];
}

/** Return the cells of an image's row. The first is a button that shows the full result. */
export function showRow(file, outcome, choose) {
  const name = make("button", { type: "button", className: "link", textContent: file.name, disabled: !outcome });
  name.addEventListener("click", choose);
  const cells = [make("th", { scope: "row" }, name)];
  if (!outcome) return [...cells, make("td", { colSpan: 4, className: "hint", textContent: "Waiting" })];
  if (outcome.failure || !outcome.answer.isOk) {
    return [...cells, make("td", { colSpan: 4, className: "wrong", textContent: outcome.failure ?? outcome.answer.error })];
  }
  const { answer } = outcome;
  const [top] = answer.body.predictions;
  const label = top ? top.label : "none";
  const texts = [answer.body.flagged ? `${label} (flagged)` : label, top ? percent(top.confidence) : "–", milliseconds(answer.totalMs), source(answer)];
  return [...cells, ...texts.map((text, column) => make("td", { textContent: text, className: column % 3 ? "number" : "" }))];
}

/** Return a one-line summary of several images. */
export function summarizeAll(outcomes) {
  const right = outcomes.filter((outcome) => outcome?.answer?.isOk).length;
  const wrong = outcomes.filter(Boolean).length - right;
  const done = `${plural(right, "image")} of ${outcomes.length} classified`;
  return wrong ? `${done}, ${wrong} failed` : done;
}
