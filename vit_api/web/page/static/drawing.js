// The pad on which a digit is drawn, and the image made from the drawing. Must not know what happens to the image.

import { byId } from "./elements.js";

const PAUSE_MS = 500;
const IMAGE_SIDE = 256;
// As fractions of the side. The model's training images fill their frame, with strokes 1 to 2 of 8 pixels wide.
const PEN = 0.13;
const MARGIN = 0.04;
const ON_SCREEN_PEN = 0.07;

const drawn = new WeakSet();

/** Return whether a file was made from a drawing. */
export const isDrawn = (file) => drawn.has(file);

/**
 * Let the user draw: call `begin` at the start of each stroke, and `take` with an image of the drawing after each pause.
 * Returns the pad.
 */
export function listenToPad(begin, take) {
  const pad = new Pad(byId("pad"), begin, take);
  byId("clear").addEventListener("click", () => pad.clear());
  return pad;
}

class Pad {
  #canvas;
  #begin;
  #take;
  #strokes = [];
  #pause = 0;
  #pointer = null;

  constructor(canvas, begin, take) {
    this.#canvas = canvas;
    this.#begin = begin;
    this.#take = take;
    canvas.addEventListener("pointerdown", (event) => this.#start(event));
    canvas.addEventListener("pointermove", (event) => this.#go(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.#end(event));
    this.#show();
  }

  /** Cancel the pending classification of the drawing: something newer was chosen. */
  wait() {
    clearTimeout(this.#pause);
  }

  /** Erase the drawing; a stroke that is being drawn ends. */
  clear() {
    this.wait();
    this.#pointer = null;
    this.#strokes = [];
    this.#show();
  }

  #start(event) {
    if (this.#pointer !== null || event.button !== 0) return;
    event.preventDefault();
    this.#begin();
    this.#pointer = event.pointerId;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#strokes.push([this.#position(event)]);
    this.#show();
  }

  #go(event) {
    if (event.pointerId !== this.#pointer) return;
    for (const step of event.getCoalescedEvents?.() ?? [event]) this.#strokes.at(-1).push(this.#position(step));
    this.#show();
  }

  #end(event) {
    if (event.pointerId !== this.#pointer) return;
    this.#pointer = null;
    this.#pause = setTimeout(() => this.#finish(), PAUSE_MS);
  }

  #finish() {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = IMAGE_SIDE;
    draw(canvas, fill(this.#strokes), PEN);
    // Not `toBlob`: it waits until the browser is idle.
    const base64 = canvas.toDataURL("image/png").split(",")[1];
    const content = Uint8Array.from(atob(base64), (byte) => byte.charCodeAt(0));
    const file = new File([content], "drawing.png", { type: "image/png" });
    drawn.add(file);
    this.#take([file]);
  }

  #position(event) {
    const box = this.#canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  #show() {
    draw(this.#canvas, this.#strokes, ON_SCREEN_PEN);
  }
}

/** Scale and centre strokes so that they fill the image, wherever and however large they were drawn. */
function fill(strokes) {
  const points = strokes.flat();
  const ends = [0, 1].map((axis) => {
    const values = points.map((point) => point[axis]);
    return [Math.min(...values), Math.max(...values)];
  });
  const extent = Math.max(...ends.map(([low, high]) => high - low), 0.05); // a dot stays small
  const room = 1 - PEN - 2 * MARGIN;
  const move = (value, [low, high]) => 0.5 + ((value - (low + high) / 2) / extent) * room;
  return strokes.map((stroke) => stroke.map(([x, y]) => [move(x, ends[0]), move(y, ends[1])]));
}

/** Draw black strokes on white in either colour scheme, since that is what the model receives. */
function draw(canvas, strokes, pen) {
  const side = canvas.width;
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, side, side);
  context.strokeStyle = "#000";
  context.lineWidth = pen * side;
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) {
    context.beginPath();
    const [[x, y]] = stroke;
    context.moveTo(x * side, y * side);
    for (const [toX, toY] of stroke) context.lineTo(toX * side, toY * side);
    context.stroke();
  }
}
