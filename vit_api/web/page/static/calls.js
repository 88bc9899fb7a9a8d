// Generates code that makes the request the page just made. Must not know about the page.

export const KEY_VARIABLE = "VIT_API_KEY";

/**
 * Return the code by language.
 *
 * `wanted` has the URL, the names of the files, whether an API key is required, and whether to bypass the cache. The key
 * itself is read from the environment and never shown.
 */
export function generateCalls(wanted) {
  return { curl: curl(wanted), python: python(wanted), javascript: javascript(wanted), browser: browser(wanted) };
}

const quoteForShell = (text) => (/^[\w./:-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
const quote = (text) => JSON.stringify(text); // the same literal in Python and JavaScript
const quoteAll = (names) => `[${names.map(quote).join(", ")}]`;

function curl({ url, names, needsKey, isFresh }) {
  const options = [
    needsKey && `-H "X-API-Key: $${KEY_VARIABLE}"`,
    isFresh && '-H "Cache-Control: no-cache"',
  ].filter(Boolean);
  const call = (file) => ["curl -sS", ...options, `--data-binary ${file} ${quoteForShell(url)}`].join(" \\\n  ");
  if (names.length === 1) return call(`@${quoteForShell(names[0])}`);
  return `for name in ${names.map(quoteForShell).join(" ")}; do\n${call('"@$name"')}; echo\ndone`;
}

function python({ url, names, needsKey, isFresh }) {
  const headers = [
    '"Content-Type": "application/octet-stream"',
    isFresh && '"Cache-Control": "no-cache"',
    needsKey && `"X-API-Key": os.environ["${KEY_VARIABLE}"]`,
  ].filter(Boolean);
  return `import json
${needsKey ? "import os\n" : ""}from pathlib import Path
from urllib.request import Request, urlopen

url = ${quote(url)}
headers = {${headers.join(", ")}}
for name in ${quoteAll(names)}:
    request = Request(url, Path(name).read_bytes(), headers)
    with urlopen(request) as response:
        print(json.load(response))`;
}

function javascript({ url, names, needsKey, isFresh }) {
  const headers = [
    isFresh && '"Cache-Control": "no-cache"',
    needsKey && `"X-API-Key": process.env.${KEY_VARIABLE}`,
  ].filter(Boolean);
  return `import { readFile } from "node:fs/promises";

const url = ${quote(url)};
const headers = {${headers.length ? ` ${headers.join(", ")} ` : ""}};
for (const name of ${quoteAll(names)}) {
  const body = await readFile(name);
  const response = await fetch(url, { method: "POST", headers, body });
  console.log(JSON.stringify(await response.json()));
}`;
}

function browser({ url, needsKey, isFresh }) {
  const headers = [isFresh && '"Cache-Control": "no-cache"', needsKey && '"X-API-Key": prompt("API key")'].filter(Boolean);
  return `const url = ${quote(url)};
const headers = {${headers.length ? ` ${headers.join(", ")} ` : ""}};
const input = document.querySelector("input[type=file]");
input.addEventListener("change", async () => {
  for (const body of input.files) {
    const response = await fetch(url, { method: "POST", headers, body });
    console.log(await response.json());
  }
});`;
}
