// The visitor's key, where the server wants one: asks for it, and keeps it for this tab. Knows nothing of requests.

import { byId } from "./elements.js";

const STORED_AS = "vit-api-key";
const SENDABLE = /^[\x20-\x7e]*$/; // browsers refuse other characters in a header, or send them in another encoding
const UNSENDABLE = "A key has only letters, digits and signs of ASCII: no accents, no long dashes. Copy it again.";

export class Key {
  #value = "";
  #asked = null;
  #tell;

  /** Start with what this tab keeps; `tell` is called whenever the visitor gives a key. */
  constructor(tell = () => {}) {
    this.#tell = tell;
    try {
      const value = sessionStorage.getItem(STORED_AS) ?? "";
      if (SENDABLE.test(value)) this.#value = value;
    } catch {
      // A frame of another site may have no storage; then the key lasts as long as the page.
    }
  }

  get value() {
    return this.#value;
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
        const value = field.value.trim();
        if (!SENDABLE.test(value)) {
          byId("key-reason").textContent = UNSENDABLE;
          field.select();
          return;
        }
        this.#keep(value);
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
    this.#tell();
  }
}
