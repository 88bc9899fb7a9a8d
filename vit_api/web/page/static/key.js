// The API key, if the server requires one: requests it and stores it for this tab. Must not know about requests.

import { byId } from "./elements.js";

const STORED_AS = "vit-api-key";
const SENDABLE = /^[\x20-\x7e]*$/; // browsers refuse other characters in a header, or send them in another encoding
const UNSENDABLE = "An API key contains only ASCII characters: no accents, no long dashes. Copy it again.";

export class Key {
  #value = "";
  #pending = null;
  #notify;

  /** Start with the key stored for this tab; `notify` is called whenever the user enters one. */
  constructor(notify = () => {}) {
    this.#notify = notify;
    try {
      const value = sessionStorage.getItem(STORED_AS) ?? "";
      if (SENDABLE.test(value)) this.#value = value;
    } catch {
      // A frame on another site may have no storage; then the key lasts as long as the page.
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

  /** Request a key from the user, once for all pending requests. Resolves to false if the user cancels. */
  request(reason) {
    this.#pending ??= this.#show(reason).finally(() => (this.#pending = null));
    return this.#pending;
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
    this.#notify();
  }
}
