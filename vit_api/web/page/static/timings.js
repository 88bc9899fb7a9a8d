// The timings of many images: read from headers, grouped by batch, and counted. Pure: no page, no requests.

const NOT_RUN = "-";
const MAX_BINS = 8;

/** Return the timings that a response of /predict/batch lists, without images that the model did not run for. */
export function readTimings(header) {
  const lists = ["x-queue-times-ms", "x-inference-times-ms", "x-batch-sizes"].map((name) => header(name)?.split(", ") ?? []);
  const [queues, inferences, sizes] = lists;
  return sizes.flatMap((size, at) => {
    if (size === NOT_RUN) return [];
    const [queueMs, inferenceMs] = [Number(queues[at]), Number(inferences[at])];
    return [{ size: Number(size), queueMs, inferenceMs, totalMs: queueMs + inferenceMs }];
  });
}

/**
 * Group images into the batches that they ran in, in the order in which these started.
 *
 * The images of a batch have its time in common, to a microsecond. Two batches of one size may have the same time by
 * chance, so no group gets more images than its size.
 */
export function toBatches(timings) {
  const batches = [];
  for (const { size, queueMs, inferenceMs } of timings) {
    const isSame = (batch) => batch.size === size && batch.inferenceMs === inferenceMs && batch.own < size;
    let batch = batches.find(isSame);
    if (!batch) batches.push((batch = { size, inferenceMs, own: 0, queueMs: Infinity }));
    batch.own += 1;
    batch.queueMs = Math.min(batch.queueMs, queueMs);
  }
  return batches.sort((one, other) => one.queueMs - other.queueMs);
}

/** Return the nearest-rank percentile of values. */
export function percentile(values, share) {
  const sorted = values.toSorted((one, other) => one - other);
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)];
}

/** Count values in bins of equal width, from 0 to the largest value. */
export function histogramOf(values) {
  if (values.length === 0) return [];
  const width = Math.max(...values) / MAX_BINS || 1;
  const bins = Array.from({ length: MAX_BINS }, (_, at) => ({ endMs: (at + 1) * width, count: 0 }));
  for (const value of values) bins[Math.min(MAX_BINS - 1, Math.max(0, Math.ceil(value / width) - 1))].count += 1;
  return bins;
}
