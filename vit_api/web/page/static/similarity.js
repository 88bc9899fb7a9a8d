// Compares two images by their embeddings. Must not know about classification.

import { bar, byId, make } from "./elements.js";
import { scaleDown } from "./scaling.js";
import { Unreachable } from "./server.js";

const SIDES = ["one", "two"];

export class SimilarityPanel {
  #server;
  #query;
  #examples;
  #inputSide;
  #files = [null, null];
  #latest = new AbortController();

  /** `query` returns which model is asked, `examples` the URLs of images to begin with, `inputSide` the model's. */
  constructor(server, query, examples, inputSide) {
    this.#server = server;
    this.#query = query;
    this.#examples = examples;
    this.#inputSide = inputSide;
    SIDES.forEach((side, at) =>
      byId(`${side}-file`).addEventListener("change", ({ target }) => target.files[0] && this.#take(at, target.files[0])),
    );
    byId("similarity").addEventListener("toggle", () => this.#begin());
  }

  /** Show what it is for, by two examples. */
  async #begin() {
    if (!byId("similarity").open || this.#files.some(Boolean)) return;
    const urls = this.#examples().slice(0, 2);
    const files = await Promise.all(urls.map(load));
    if (this.#files.some(Boolean) || !files.every(Boolean)) return;
    files.forEach((file, at) => this.#show(at, file));
    await this.#compare();
  }

  async #take(at, file) {
    this.#show(at, file);
    if (this.#files.every(Boolean)) await this.#compare();
    else say("Choose the other image.");
  }

  #show(at, file) {
    this.#files[at] = file;
    const url = URL.createObjectURL(file);
    const picture = make("img", { src: url, alt: file.name, width: 96, height: 96 });
    const end = () => URL.revokeObjectURL(url);
    picture.addEventListener("load", end);
    picture.addEventListener("error", () => (end(), picture.remove()));
    byId(`${SIDES[at]}-picture`).replaceChildren(picture);
  }

  async #compare() {
    this.#latest.abort();
    const { signal } = (this.#latest = new AbortController());
    say("Comparing …");
    byId("similarity-bar").replaceChildren();
    const [text, cosine] = await this.#ask(this.#files, signal);
    if (signal.aborted) return;
    say(text);
    if (cosine !== null) byId("similarity-bar").replaceChildren(bar(cosine));
  }

  /** Return what to say, and the cosine similarity if there is one. */
  async #ask(files, signal) {
    try {
      const input = await Promise.all(files.map(async (file) => toDataUrl(await scaleDown(file, this.#inputSide()))));
      const body = new Blob([JSON.stringify({ input, encoding_format: "float" })]);
      const path = `v1/embeddings?${this.#query().slice(1)}`;
      const answer = await this.#server.post(path, body, { "Content-Type": "application/json" }, signal);
      if (!answer.isOk) return [answer.body?.error?.message ?? answer.error, null];
      const [one, two] = answer.body.data.map(({ embedding }) => embedding);
      const cosine = one.reduce((sum, value, at) => sum + value * two[at], 0); // both are of length 1
      return [`Cosine similarity of ${files[0].name} and ${files[1].name}: ${cosine.toFixed(3)}`, cosine];
    } catch (error) {
      if (error instanceof Unreachable) return [error.message, null];
      if (signal.aborted) return ["", null];
      throw error;
    }
  }
}

function say(text) {
  byId("similarity-status").textContent = text;
}

async function load(url) {
  try {
    const response = await fetch(url);
    const name = new URL(url).pathname.split("/").at(-1);
    return response.ok ? new File([await response.blob()], name) : null;
  } catch {
    return null;
  }
}

function toDataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Unreachable(`${file.name} could not be read.`));
    reader.readAsDataURL(file);
  });
}
