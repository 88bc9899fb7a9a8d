// The ways to provide images: drop, paste, choose, take a photo. Must not know what happens to them.

import { byId } from "./elements.js";

/** Call `take` with the files, or `refuse` with a message if there are none. */
export function listen(take, refuse) {
  choose(byId("pick"), byId("files"), take);
  choose(byId("photograph"), byId("photo"), take);
  listenForDrops(take, refuse);
  document.addEventListener("paste", (event) => {
    if (event.target.matches?.("input")) return;
    const files = [...event.clipboardData.files];
    if (files.length) take(files);
    else refuse("There is no image in the clipboard.");
  });
}

function choose(button, input, take) {
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    const files = [...input.files];
    input.value = ""; // so that the same file can be chosen again
    if (files.length) take(files);
  });
}

// The whole page accepts drops: otherwise a file dropped beside the frame would replace the page.
function listenForDrops(take, refuse) {
  const zone = byId("drop");
  let depth = 0; // entering a child comes before leaving its parent
  const show = (change) => zone.classList.toggle("over", (depth = Math.max(0, depth + change)) > 0);
  document.addEventListener("dragenter", () => show(1));
  document.addEventListener("dragleave", () => show(-1));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    show(-depth);
    const files = [...event.dataTransfer.files];
    if (files.length) take(files);
    else refuse("That is not a file. Save the image first, then drop the file.");
  });
}
