// The calls on the page: which language, and copying them. Knows nothing of how they are worded.

import { byId } from "./elements.js";
import { KEY_VARIABLE, wordCalls } from "./calls.js";

const HINTS = {
  curl: "In a shell, in the folder of the image.",
  python: "Python 3, without further packages, in the folder of the image.",
  javascript: "Node.js 18 or later, as a file that ends in .mjs, in the folder of the image.",
};

export class CallPanel {
  #calls = null;
  #needsKey = false;

  constructor() {
    for (const choice of this.#choices()) choice.addEventListener("change", () => this.#show());
    byId("copy").addEventListener("click", () => this.#copy());
  }

  show(wanted) {
    this.#calls = wordCalls(wanted);
    this.#needsKey = wanted.needsKey;
    this.#show();
  }

  #choices() {
    return [...document.getElementsByName("language")];
  }

  #show() {
    const { value } = this.#choices().find((choice) => choice.checked);
    byId("call").textContent = this.#calls[value];
    byId("call-hint").textContent = HINTS[value] + (this.#needsKey ? ` Your key has to be in $${KEY_VARIABLE}.` : "");
    byId("copied").textContent = "";
  }

  // Frames may write to the clipboard only where the page around them allows it; there the text is selected instead.
  async #copy() {
    try {
      await navigator.clipboard.writeText(byId("call").textContent);
      byId("copied").textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(byId("call"));
      const isCopied = document.execCommand("copy");
      byId("copied").textContent = isCopied ? "Copied." : "It is selected: copy it with your keyboard.";
    }
  }
}
