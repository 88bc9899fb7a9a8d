// Which model and version is asked, of those that the server has. Must not know how images are sent.

import { byId, make } from "./elements.js";

export class ServedModels {
  #choices = [];
  #models = [];

  /** Offer what `/info` lists; nothing to choose from with one model. */
  show(info) {
    this.#models = info.models ?? [info];
    if (!info.models) return;
    const names = [...new Set(info.models.map(({ model }) => model))];
    this.#choices = names.flatMap((name) => [
      { model: name, title: `${name}, by traffic` },
      ...info.models
        .filter(({ model }) => model === name)
        .map(({ version, traffic }) => ({ model: name, version, title: `${name}, version ${version} (${traffic} %)` })),
    ]);
    const options = () => this.#choices.map(({ title }, at) => make("option", { value: String(at), textContent: title }));
    byId("served").replaceChildren(...options());
    byId("other").replaceChildren(make("option", { value: "", textContent: "Nothing" }), ...options());
    byId("models").hidden = false;
  }

  /** The part of a query that names what was chosen; empty with one model. */
  query() {
    return toQuery(this.#choices[Number(byId("served").value)]);
  }

  /** The same for what each image is compared with; null if nothing. */
  otherQuery() {
    const { value } = byId("other");
    return value === "" ? null : toQuery(this.#choices[Number(value)]);
  }

  /** The longer side of the largest input among the models; null until they are known. */
  get inputSide() {
    const sides = this.#models.flatMap(({ input_shape: [height, width] }) => [height, width]);
    return sides.length ? Math.max(...sides) : null;
  }

  /** Return the thresholds by label that an answer was made with; null if there are none. */
  thresholdsOf({ body }) {
    const isSame = ({ model, version }) => model === body.model && (body.version ?? version) === version;
    return this.#models.find(isSame)?.thresholds ?? null;
  }
}

function toQuery(choice) {
  if (!choice) return "";
  const version = choice.version ? `&version=${encodeURIComponent(choice.version)}` : "";
  return `&model=${encodeURIComponent(choice.model)}${version}`;
}

/** Return the name of what answered, as people say it. */
export function nameOf({ model, version }) {
  return version ? `${model}, version ${version}` : model;
}
