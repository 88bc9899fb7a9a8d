// Posts an image as pages and Node scripts do with fetch, and prints the answers as JSON.
import { readFile } from "node:fs/promises";

const [server, path] = process.argv.slice(2);
const image = await readFile(path);
const blob = new Blob([image], { type: "image/png" });

const form = new FormData();
form.append("file", blob, "digit-7.png");
form.append("top_k", "2");

const batch = new FormData();
batch.append("files", blob, "first.png");
batch.append("files", blob); // named "blob"

const json = { image: image.toString("base64"), top_k: 2 };
const asUrl = { image: `data:image/png;base64,${image.toString("base64")}`, top_k: 2 };
const headers = { "Content-Type": "application/json" };

const calls = [
  ["/predict", { body: form }],
  ["/predict?top_k=2", { body: image }],
  ["/predict?top_k=2", { body: blob }],
  ["/predict?top_k=2", { body: blob.stream(), duplex: "half" }],
  ["/predict", { body: JSON.stringify(json), headers }],
  ["/predict", { body: JSON.stringify(asUrl) }],
  ["/predict", { body: new URLSearchParams(json) }],
  ["/predict/batch?top_k=2", { body: batch }],
];
const answers = [];
for (const [where, options] of calls) {
  const response = await fetch(server + where, { method: "POST", ...options });
  answers.push([response.status, await response.json()]);
}
console.log(JSON.stringify(answers));
