// Requests to the server that the page is from, below whatever path it is at. Knows nothing of what answers mean.

const UNAUTHORIZED = 401;

/** What came back. `sentMs` is when the body had left, as the browser has it; null if it doesn't know. */
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

  /** How the server words what went wrong. */
  get error() {
    return this.body?.error ?? `The server, or a proxy before it, answered ${this.status} and nothing else.`;
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
        throw new Unreachable("The server can't be reached.");
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
      if (this.#key.value !== sentKey) continue; // given meanwhile, and not tried yet
      const reason = this.#key.isKnown ? `That key doesn't do: ${answer.error}` : answer.error;
      if (!(await this.#key.ask(reason))) return answer;
    }
  }
}

// XMLHttpRequest tells when the body is sent, which fetch doesn't.
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
    request.onerror = () => reject(new Unreachable("The server can't be reached, or refused the upload half-way."));
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
