// The code panel: selects the language and copies the code. Must not know how the code is generated.

import { byId } from "./elements.js";
import { KEY_VARIABLE, generateCalls } from "./calls.js";

const HINTS = {
  curl: "Run in a shell, in the folder of the image.",
  python: "Python 3, standard library only. Run in the folder of the image.",
  javascript: "Node.js 18 or later. Save as a .mjs file and run it in the folder of the image.",
  browser:
    'A module script of a page with <input type="file" multiple>. The server must allow the origin of the page: set VIT_API_CORS_ORIGINS.',
};
const KEY_HINTS = { browser: " Ask the user for the API key: whatever a page contains is public." };

export class CallPanel {
  #calls = null;
  #needsKey = false;

  constructor() {
    for (const choice of this.#choices()) choice.addEventListener("change", () => this.#show());
    byId("copy").addEventListener("click", () => this.#copy());
  }

  show(wanted) {
    this.#calls = generateCalls(wanted);
    this.#needsKey = wanted.needsKey;
    this.#show();
  }

  #choices() {
    return [...document.getElementsByName("language")];
  }

  #show() {
    const { value } = this.#choices().find((choice) => choice.checked);
    byId("call").textContent = this.#calls[value];
    byId("call-hint").textContent = HINTS[value] + (this.#needsKey ? (KEY_HINTS[value] ?? ` Set $${KEY_VARIABLE} to your API key.`) : "");
    byId("copied").textContent = "";
  }

  // A frame may only write to the clipboard if the embedding page allows it; otherwise the text is selected instead.
  async #copy() {
    try {
      await navigator.clipboard.writeText(byId("call").textContent);
      byId("copied").textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(byId("call"));
      const isCopied = document.execCommand("copy");
      byId("copied").textContent = isCopied ? "Copied." : "Selected: press Ctrl+C or ⌘C to copy.";
    }
  }
}
