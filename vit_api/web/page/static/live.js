// The live metrics: fetches them while the panel is visible. Must not know about classification.

import { bar, byId, make } from "./elements.js";
import { apart, buckets, difference, parse, quantile, total } from "./prometheus.js";
import { Unreachable } from "./server.js";
import { bytes, milliseconds, percent } from "./format.js";

const EVERY_MS = 2000;
const SPAN_MS = 60_000;
const UNAUTHORIZED = 401;
const UNKNOWN = "–";
const STATE = "The last minute, updated every 2 seconds.";

export class LivePanel {
  #server;
  #moments = [];
  #timer = 0;
  #turns = 0;

  constructor(server) {
    this.#server = server;
    byId("live").addEventListener("toggle", () => this.#turn());
    document.addEventListener("visibilitychange", () => this.#turn());
    showFigures(figuresOf([]));
    showSizes([]);
  }

  #turn() {
    clearTimeout(this.#timer);
    this.#turns += 1; // a response that was requested before is not shown
    if (byId("live").open && !document.hidden) this.#ask(this.#turns);
  }

  async #ask(turn) {
    const [text, problem] = await this.#fetch();
    if (turn !== this.#turns) return;
    byId("live-state").textContent = problem || STATE;
    if (text) this.#show(text);
    this.#timer = setTimeout(() => this.#ask(turn), EVERY_MS);
  }

  /** Return the metrics, or an error message. */
  async #fetch() {
    try {
      const answer = await this.#server.get("metrics", { isQuiet: true, accept: "text/plain" });
      return answer.isOk ? [answer.text, ""] : ["", explain(answer)];
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error;
      return ["", error.message];
    }
  }

  #show(text) {
    const now = performance.now();
    this.#moments.push({ at: now, samples: parse(text) });
    while (this.#moments.length > 2 && now - this.#moments[1].at >= SPAN_MS) this.#moments.shift();
    showFigures(figuresOf(this.#moments));
    showSizes(sizesOf(this.#moments));
  }
}

function explain(answer) {
  return answer.status === UNAUTHORIZED
    ? "Metrics require an API key."
    : `Metrics are not available: ${answer.error}`;
}

const histogram = (moments, name) =>
  difference(buckets(moments.at(-1).samples, name), buckets(moments[0].samples, name));

/** Return the increase of a counter; null if there is no such counter. */
function growth(moments, name) {
  const [last, first] = [total(moments.at(-1).samples, name), total(moments[0].samples, name) ?? 0];
  return last === null ? null : last < first ? last : last - first;
}

/** Return the values of the tiles for a series of scrapes, oldest first. */
export function figuresOf(moments) {
  const figures = { "Requests/s": UNKNOWN, p50: UNKNOWN, p99: UNKNOWN, "Cache hits": UNKNOWN };
  if (moments.length === 0) return figures;
  const seconds = (moments.at(-1).at - moments[0].at) / 1000;
  if (seconds > 0) figures["Requests/s"] = (growth(moments, "inference_requests_total") / seconds).toFixed(1);
  const times = histogram(moments, "inference_duration_seconds");
  for (const [name, share] of [["p50", 0.5], ["p99", 0.99]]) {
    const found = quantile(times, share);
    if (found !== null) figures[name] = milliseconds(found * 1000);
  }
  const [hits, misses, shared] = ["hits", "misses", "coalesced"].map((name) => growth(moments, `cache_${name}_total`));
  const images = hits + misses + shared;
  if (images > 0) figures["Cache hits"] = percent(hits / images);
  if (hits === null) figures["Cache hits"] = "off";
  const { samples } = moments.at(-1);
  const used = total(samples, "gpu_memory_used_bytes");
  if (used !== null) figures["GPU memory"] = `${bytes(used)} of ${bytes(total(samples, "gpu_memory_total_bytes"))}`;
  return figures;
}

function sizesOf(moments) {
  return apart(histogram(moments, "inference_batch_size"));
}

function showFigures(figures) {
  const tiles = Object.entries(figures).map(([name, value]) =>
    make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value })),
  );
  byId("figures").replaceChildren(...tiles);
}

/** Show the number of batches by size, up to the largest size that occurred. */
function showSizes(counts) {
  const last = counts.findLastIndex(([, count]) => count > 0);
  const largest = Math.max(1, ...counts.map(([, count]) => count));
  const rows = counts.slice(0, last + 1).map(([end, count], at) => {
    const start = at > 0 ? counts[at - 1][0] + 1 : 1;
    const name = end === Infinity ? `${start} or more` : start >= end ? `${end}` : `${start} to ${end}`;
    return make(
      "li",
      {},
      make("span", { className: "label", textContent: name }),
      bar(count / largest),
      make("span", { className: "value", textContent: String(count) }),
    );
  });
  byId("sizes").replaceChildren(...(rows.length ? rows : [make("li", { className: "hint", textContent: "No batches in the last minute." })]));
}
