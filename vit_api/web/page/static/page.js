// Composes the page: sends images to the server and shows the results.

import { BurstPanel } from "./burst.js";
import { CallPanel } from "./call_panel.js";
import { isDrawn, listenToPad } from "./drawing.js";
import { byId, make } from "./elements.js";
import { showExamples } from "./examples.js";
import { listen } from "./inputs.js";
import { Key } from "./key.js";
import { LivePanel } from "./live.js";
import { scaleDown } from "./scaling.js";
import { showOutcome, showRow, summarize, summarizeAll } from "./results.js";
import { ServedModels } from "./served.js";
import { Server, Unreachable } from "./server.js";
import { SimilarityPanel } from "./similarity.js";

const AT_ONCE = 4;
const USUAL_SIDE = 224; // of an input, until the server has said it
const DIGITS = "digits";
const NARROW = matchMedia("(max-width: 760px)");
const UNEXPECTED = "The response did not come from this server. Does a proxy require you to log in?";

const key = new Key(() => meetModel());
const server = new Server(key);
const calls = new CallPanel();
const served = new ServedModels();
let latest = new AbortController();
let meeting = null;
let isMet = false;
let pad = null;
let lastFiles = [];
let hasBegun = false;
let opening = null; // the signal of the example that is classified without the user
let pictureUrl = null;

function say(text) {
  byId("status").textContent = text;
}

function show(file, outcome) {
  if (pictureUrl) URL.revokeObjectURL(pictureUrl);
  pictureUrl = URL.createObjectURL(file);
  byId("answer").replaceChildren(...showOutcome(file, pictureUrl, outcome));
}

/** Cancel what is in flight. Returns a signal that is aborted when something newer is chosen. */
function begin() {
  latest.abort();
  latest = new AbortController();
  hasBegun = true;
  pad?.wait();
  return latest.signal;
}

/** Classify files, in place of what is in flight. */
async function take(files, signal = begin()) {
  const request = wanted();
  lastFiles = files;
  byId("several").hidden = files.length === 1;
  if (!isDrawn(files[0])) pad?.clear(); // an old drawing must not stand beside the result of another image
  bringIntoView(isDrawn(files[0]));
  try {
    await (files.length === 1 ? takeOne(files[0], request, signal) : takeSeveral(files, request, signal));
  } catch (error) {
    if (!signal.aborted) throw error;
    return; // something newer was chosen
  }
  showCalls(request, files.map((file) => file.name));
}

/** Classify what is shown once more, with another model. */
function again() {
  if (lastFiles.length) take(lastFiles);
}

/** On a narrow screen, where the result is below the images, scroll to it; after a stroke, keep the pad in view. */
function bringIntoView(isDrawing) {
  if (latest.signal === opening || !NARROW.matches) return;
  if (isDrawing) byId("status").scrollIntoView({ block: "end" });
  else byId("result").scrollIntoView({ block: "start" });
}

/** Return the options that the user has set. */
function wanted() {
  const frames = byId("frames").value;
  const isStill = frames === "1" || frames === "";
  const options = `predict?top_k=${encodeURIComponent(byId("top-k").value)}${isStill ? "" : `&frames=${encodeURIComponent(frames)}`}`;
  const other = served.otherQuery();
  return {
    path: options + served.query(),
    otherPath: other === null ? null : options + other,
    isFresh: byId("fresh").checked,
    isOriginal: byId("original").checked || !isStill, // scaled down, an animation would have one frame
  };
}

function showCalls({ path, isFresh }, names) {
  calls.show({ url: server.url(path), names, needsKey: key.isKnown, isFresh });
}

const inputSide = () => served.inputSide ?? USUAL_SIDE;

/** Return the outcome for a file: a response, or why there is none. */
async function classify(file, { path, isFresh, isOriginal }, signal) {
  const headers = { "Content-Type": "application/octet-stream" };
  if (isFresh) headers["Cache-Control"] = "no-cache";
  try {
    const sent = isOriginal ? file : await scaleDown(file, inputSide());
    const answer = await server.post(path, sent, headers, signal);
    const scaledBytes = sent === file ? null : sent.size;
    if (answer.isOk && !answer.body?.predictions) return { failure: UNEXPECTED };
    return { answer, scaledBytes, thresholds: answer.isOk ? served.thresholdsOf(answer) : null };
  } catch (error) {
    if (error instanceof Unreachable) return { failure: error.message };
    throw error;
  } finally {
    signal.throwIfAborted();
  }
}

async function takeOne(file, request, signal) {
  say(`Classifying ${file.name} …`);
  show(file, null);
  const { otherPath } = request;
  const [outcome, other] = await Promise.all([
    classify(file, request, signal),
    otherPath && classify(file, { ...request, path: otherPath }, signal),
  ]);
  if (other) outcome.other = other;
  show(file, outcome);
  say(summarize(file, outcome));
}

async function takeSeveral(files, request, signal) {
  const outcomes = files.map(() => null);
  const rows = files.map((file) => make("tr", {}, ...showRow(file, null)));
  byId("rows").replaceChildren(...rows);
  byId("answer").replaceChildren();
  const progress = byId("progress");
  progress.max = files.length;
  progress.value = 0;
  say(`Classifying ${files.length} images …`);
  const waiting = files.entries();
  const work = async () => {
    for (const [at, file] of waiting) {
      outcomes[at] = await classify(file, request, signal);
      rows[at].replaceChildren(...showRow(file, outcomes[at], () => show(file, outcomes[at])));
      progress.value += 1;
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  say(summarizeAll(outcomes));
}

/** Adapt the page to the model, once; if the server does not respond the page still works. */
function meetModel() {
  if (!isMet) meeting ??= askForModel().finally(() => (meeting = null));
  return meeting;
}

async function askForModel() {
  let info = null;
  try {
    const answer = await server.get("info");
    if (answer.isOk) info = answer.body;
    else say(answer.error);
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    say(error.message);
  }
  isMet = info !== null;
  if (isMet) {
    const [height, width] = info.input_shape;
    served.show(info);
    const kind = info.multi_label ? "labels, each with a probability of its own" : "classes";
    byId("model").textContent = `${info.model} · ${info.labels.toLocaleString("en")} ${kind} · ${width} × ${height} pixels`;
    byId("top-k").max = Math.max(info.labels, byId("top-k").max);
  }
  const isDigits = info?.model === DIGITS;
  byId("drawing").hidden = !isDigits;
  if (isDigits) pad ??= listenToPad(begin, take);
  const showFirst = showExamples(isDigits, begin, take, say);
  if (!isMet || hasBegun) return;
  showFirst();
  opening = latest.signal;
}

listen(take, say);
showCalls(wanted(), ["image.jpg"]);
for (const id of ["served", "other"]) byId(id).addEventListener("change", again);
const query = () => served.query();
const examples = () => [...document.querySelectorAll("#examples img")];
new BurstPanel(server, query, () => [examples()[0], inputSide()]);
new SimilarityPanel(server, query, () => examples().map(({ src }) => src), inputSide);
new LivePanel(server);
await meetModel();
