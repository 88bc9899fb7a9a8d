// Scales large images down before they are sent. Must not know what they are for.

const LARGE_BYTES = 4 * 2 ** 20;
const LARGE_PIXELS = 8e6;
// Smaller files are sent as they are, without a look at their pixels: they take no longer than scaling them would.
const SMALL_BYTES = 2 ** 20;
// The server resizes once more, for which it needs some more than the model's side.
const TIMES = 4;
const MIN_SIDE = 1024;
const TYPE = "image/jpeg";
const QUALITY = 0.92;
// The server looks at stored pixels and ignores colour profiles, so the browser must do the same.
const AS_STORED = { imageOrientation: "from-image", colorSpaceConversion: "none" };

let latest = Promise.resolve();

/**
 * Return what to send for a file: a smaller copy if it is much larger than a model of that side needs, or else itself.
 *
 * Files that the browser can't read, and those with transparency, are sent as they are: the server may read what is
 * behind it. One file is scaled at a time, since its pixels may take hundreds of megabytes.
 */
export function scaleDown(file, side) {
  const scaled = latest.then(() => (file.size > SMALL_BYTES ? tryToScale(file, side) : file)).catch(() => file);
  latest = scaled;
  return scaled;
}

async function tryToScale(file, side) {
  const whole = await createImageBitmap(file, AS_STORED);
  const { width, height } = whole;
  const share = Math.max(TIMES * side, MIN_SIDE) / Math.min(width, height);
  if (share >= 1 || (file.size <= LARGE_BYTES && width * height <= LARGE_PIXELS)) {
    whole.close();
    return file;
  }
  const size = { resizeWidth: Math.round(width * share), resizeHeight: Math.round(height * share) };
  const small = await createImageBitmap(whole, { ...size, resizeQuality: "high" }).finally(() => whole.close());
  const canvas = new OffscreenCanvas(small.width, small.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(small, 0, 0);
  small.close();
  if (file.type !== TYPE && isTransparent(context.getImageData(0, 0, canvas.width, canvas.height).data)) return file;
  const content = await canvas.convertToBlob({ type: TYPE, quality: QUALITY });
  return content.type === TYPE && content.size < file.size ? content : file;
}

function isTransparent(pixels) {
  for (let at = 3; at < pixels.length; at += 4) if (pixels[at] !== 255) return true;
  return false;
}
