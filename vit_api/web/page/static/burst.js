// Sends many images at once, and draws the batches that the model ran them in. Must not know how one image is shown.

import { bar, byId, make } from "./elements.js";
import { milliseconds } from "./format.js";
import { Unreachable } from "./server.js";
import { histogramOf, percentile, readTimings, toBatches } from "./timings.js";

const COUNT = 64;
const CONNECTIONS = 6; // of a browser to one server, with HTTP/1.1
const MIN_SIDE = 64;
const MAX_SIDE = 384;
const TURN = 0.3; // radians, of which each image has its part: they must differ, since identical ones are computed once

export class BurstPanel {
  #server;
  #query;
  #picture;
  #isRunning = false;

  /** `query` returns which model is asked; `picture` returns an image element and the side of the model's input. */
  constructor(server, query, picture) {
    this.#server = server;
    this.#query = query;
    this.#picture = picture;
    byId("send-many").addEventListener("click", () => this.#run());
  }

  async #run() {
    if (this.#isRunning) return;
    this.#isRunning = true;
    try {
      await this.#send(await makeImages(...this.#picture()));
    } finally {
      this.#isRunning = false;
    }
  }

  async #send(images) {
    const share = Math.ceil(images.length / CONNECTIONS);
    const parts = Array.from({ length: CONNECTIONS }, (_, at) => images.slice(at * share, (at + 1) * share));
    const timings = [];
    const problems = [];
    show([], 0, 0);
    say(`Sending ${images.length} images …`);
    const startedAt = performance.now();
    await Promise.all(
      parts.map(async (part) => {
        const { found, problem } = await this.#sendPart(part);
        timings.push(...found);
        if (problem) problems.push(problem);
        show(timings, images.length, performance.now() - startedAt);
      }),
    );
    const done = `${timings.length} of ${images.length} images classified`;
    say(problems.length ? `${done}. ${problems[0]}` : `${done}.`);
  }

  /** Send some images in one request. Returns the timings of those that were classified, and why others were not. */
  async #sendPart(images) {
    const form = new FormData();
    for (const image of images) form.append("files", image, "image.jpg");
    const headers = { "Cache-Control": "no-cache" };
    try {
      const path = `predict/batch?top_k=1${this.#query()}`;
      const answer = await this.#server.post(path, form, headers, new AbortController().signal);
      if (!answer.isOk || !Array.isArray(answer.body)) return { found: [], problem: answer.error };
      const failed = answer.body.find((item) => item.error);
      return { found: readTimings(answer.header), problem: failed?.error };
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error;
      return { found: [], problem: error.message };
    }
  }
}

/** Return images that differ: the picture, turned a little, each by another angle. */
function makeImages(picture, inputSide) {
  const side = Math.min(MAX_SIDE, Math.max(MIN_SIDE, inputSide));
  const angle = (at) => ((at + Math.random() / 2) / COUNT - 0.5) * TURN;
  return Promise.all(Array.from({ length: COUNT }, (_, at) => turned(picture, side, angle(at))));
}

function turned(picture, side, angle) {
  const canvas = new OffscreenCanvas(side, side);
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, side, side);
  context.translate(side / 2, side / 2);
  context.rotate(angle);
  if (picture) context.drawImage(picture, -side / 2, -side / 2, side, side);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 });
}

function say(text) {
  byId("burst-status").textContent = text;
}

function show(timings, count, ms) {
  const batches = toBatches(timings);
  byId("batches").replaceChildren(...batches.map(showBatch));
  byId("burst-figures").replaceChildren(...(timings.length ? showFigures(timings, batches, ms) : []));
  const bins = histogramOf(timings.map(({ totalMs }) => totalMs));
  byId("latencies-title").hidden = bins.length === 0;
  byId("latencies").replaceChildren(...showHistogram(bins));
}

/** A row: a square for each image, hollow for those of other clients. */
function showBatch({ size, own, inferenceMs }) {
  const squares = Array.from({ length: size }, (_, at) => make("span", { className: at < own ? "own" : "" }));
  const others = size > own ? `, ${size - own} of other clients` : "";
  return make(
    "li",
    {},
    make("span", { className: "label", textContent: `Batch of ${size}${others}` }),
    make("span", { className: "squares", "aria-hidden": "true" }, ...squares),
    make("span", { className: "value", textContent: milliseconds(inferenceMs) }),
  );
}

function showFigures(timings, batches, ms) {
  const times = timings.map(({ totalMs }) => totalMs);
  const mean = batches.reduce((sum, { size }) => sum + size, 0) / batches.length;
  const figures = {
    "Images/s": (timings.length / (ms / 1000)).toFixed(0),
    "Mean batch": mean.toFixed(1),
    p50: milliseconds(percentile(times, 0.5)),
    p95: milliseconds(percentile(times, 0.95)),
  };
  return Object.entries(figures).map(([name, value]) =>
    make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value })),
  );
}

function showHistogram(bins) {
  const largest = Math.max(...bins.map(({ count }) => count));
  return bins.map(({ endMs, count }) =>
    make(
      "li",
      {},
      make("span", { className: "label", textContent: `≤ ${milliseconds(endMs)}` }),
      bar(count / largest),
      make("span", { className: "value", textContent: String(count) }),
    ),
  );
}
