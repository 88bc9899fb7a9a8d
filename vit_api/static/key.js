// The visitor's key, where the server wants one: asks for it, and keeps it for this tab. Knows nothing of requests.

import { byId } from "./elements.js";

const STORED_AS = "vit-api-key";

export class Key {
  #value = "";
  #asked = null;

  constructor() {
    try {
      this.#value = sessionStorage.getItem(STORED_AS) ?? "";
    } catch {
      // A frame of another site may have no storage; then the key lasts as long as the page.
    }
  }

  get isKnown() {
    return this.#value !== "";
  }

  headers() {
    return this.isKnown ? { "X-API-Key": this.#value } : {};
  }

  /** Ask for a key, once for all who want one now. Resolves to false if the visitor has none. */
  ask(reason) {
    this.#asked ??= this.#show(reason).finally(() => (this.#asked = null));
    return this.#asked;
  }

  #show(reason) {
    const dialog = byId("key-dialog");
    const field = byId("key");
    byId("key-reason").textContent = reason;
    field.value = "";
    return new Promise((resolve) => {
      const end = new AbortController();
      const listen = (target, name, act) => target.addEventListener(name, act, { signal: end.signal });
      let isGiven = false;
      listen(byId("key-form"), "submit", (event) => {
        event.preventDefault();
        this.#keep(field.value.trim());
        isGiven = true;
        dialog.close();
      });
      listen(byId("key-cancel"), "click", () => dialog.close());
      listen(dialog, "close", () => {
        end.abort();
        resolve(isGiven);
      });
      dialog.showModal();
      field.focus();
    });
  }

  #keep(value) {
    this.#value = value;
    try {
      sessionStorage.setItem(STORED_AS, value);
    } catch {
      // As above.
    }
  }
}
