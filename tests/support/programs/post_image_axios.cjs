// Posts an image as Node scripts do with axios, and prints the answers as JSON.
const fs = require("node:fs");
const axios = require("axios");
const FormData = require("form-data"); // Debian's axios does not know Node's own

const [server, path] = process.argv.slice(2);
const image = fs.readFileSync(path);

async function main() {
  const form = new FormData();
  form.append("file", image, { filename: "digit-7.png", contentType: "image/png" });
  form.append("top_k", "2");
  const type = { headers: { "Content-Type": "image/png" } };
  const responses = [
    await axios.post(`${server}/predict`, form),
    await axios.postForm(`${server}/predict`, { file: fs.createReadStream(path), top_k: 2 }),
    await axios.post(`${server}/predict?top_k=2`, image),
    await axios.post(`${server}/predict`, image, { ...type, params: { top_k: 2 } }),
    await axios.post(`${server}/predict?top_k=2`, fs.createReadStream(path), type),
    await axios.post(`${server}/predict`, { image: image.toString("base64"), top_k: 2 }),
  ];
  console.log(JSON.stringify(responses.map((response) => [response.status, response.data])));
}

main();
