// Requests to the server that the page comes from, with its path prefix. Must not know what responses mean.

const UNAUTHORIZED = 401;

/** A response. `sentMs` is when the body was sent, as reported by the browser; null if unknown. */
class Answer {
  constructor(status, text, header, totalMs, sentBytes = 0, sentMs = null) {
    this.status = status;
    this.text = text;
    this.header = header;
    this.totalMs = totalMs;
    this.sentBytes = sentBytes;
    this.sentMs = sentMs;
    this.body = parse(text);
  }

  get isOk() {
    return this.status === 200;
  }

  /** The error message, from the server if it sent one. Its 401 explains headers, which the page sends itself. */
  get error() {
    if (this.status === UNAUTHORIZED) return "An API key is required.";
    return this.body?.error ?? `The server, or a proxy in front of it, returned status ${this.status} without an explanation.`;
  }
}

export class Unreachable extends Error {}

export class Server {
  #key;

  constructor(key) {
    this.#key = key;
    this.base = new URL(".", document.baseURI).href;
  }

  url(path) {
    return new URL(path, this.base).href;
  }

  /** GET a path; with `isQuiet`, without asking for a key. */
  async get(path, { isQuiet = false, accept = "*/*" } = {}) {
    return this.#withKey(isQuiet, async (keyHeaders) => {
      const startedAt = performance.now();
      let response, text;
      try {
        response = await fetch(this.url(path), { headers: { Accept: accept, ...keyHeaders }, cache: "no-store" });
        text = await response.text();
      } catch {
        throw new Unreachable("The server could not be reached.");
      }
      const header = (name) => response.headers.get(name);
      return new Answer(response.status, text, header, performance.now() - startedAt);
    });
  }

  /** POST a file's bytes. */
  post(path, file, headers, signal) {
    return this.#withKey(false, (keyHeaders) => send(this.url(path), file, { ...headers, ...keyHeaders }, signal));
  }

  async #withKey(isQuiet, ask) {
    for (;;) {
      const sentKey = this.#key.value;
      const answer = await ask(this.#key.headers());
      if (answer.status !== UNAUTHORIZED || isQuiet) return answer;
      if (this.#key.value !== sentKey) continue; // a key was entered in the meantime and has not been tried
      const reason = this.#key.isKnown ? "Invalid API key." : "";
      if (!(await this.#key.request(reason))) return answer;
    }
  }
}

// XMLHttpRequest reports when the body has been sent; fetch does not.
function send(url, file, headers, signal) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const request = new XMLHttpRequest();
    let sentAt = null;
    request.open("POST", url);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onload = () => (sentAt = performance.now());
    request.onload = () => {
      const header = (name) => request.getResponseHeader(name);
      const totalMs = performance.now() - startedAt;
      const sentMs = sentAt === null ? null : sentAt - startedAt;
      resolve(new Answer(request.status, request.responseText, header, totalMs, file.size, sentMs));
    };
    request.onerror = () => reject(new Unreachable("The server could not be reached, or closed the connection during the upload."));
    request.onabort = () => reject(signal.reason);
    signal.addEventListener("abort", () => request.abort(), { once: true });
    const startedAt = performance.now();
    request.send(file);
  });
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
