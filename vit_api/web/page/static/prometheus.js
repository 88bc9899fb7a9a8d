// Parses Prometheus' text format and evaluates counters and histograms over time. Pure: no page, no requests.

const LINE = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/** Return the samples: name, labels, value. */
export function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = LINE.exec(line);
    if (!found) continue; // a comment or an empty line
    const labels = {};
    for (const [, name, value] of (found[2] ?? "").matchAll(LABEL)) labels[name] = value;
    samples.push({ name: found[1], labels, value: toNumber(found[3]) });
  }
  return samples;
}

function toNumber(text) {
  return text === "+Inf" ? Infinity : text === "-Inf" ? -Infinity : Number(text);
}

/** Sum a metric's samples over all labels; null if there are none. */
export function total(samples, name) {
  const values = samples.filter((sample) => sample.name === name).map((sample) => sample.value);
  return values.length ? values.reduce((sum, value) => sum + value, 0) : null;
}

/** Return a histogram's cumulative buckets, [upper bound, count], summed over its other labels. */
export function buckets(samples, name) {
  const counts = new Map();
  for (const sample of samples) {
    if (sample.name !== `${name}_bucket`) continue;
    const end = toNumber(sample.labels.le);
    counts.set(end, (counts.get(end) ?? 0) + sample.value);
  }
  return [...counts].sort(([one], [other]) => one - other);
}

/** Return the difference between the buckets of two scrapes. If a count fell, the server restarted from 0. */
export function difference(later, earlier) {
  const before = new Map(earlier);
  const isSame = later.every(([end, count]) => count >= (before.get(end) ?? 0));
  return isSame ? later.map(([end, count]) => [end, count - (before.get(end) ?? 0)]) : later;
}

/** Estimate a quantile as Prometheus' `histogram_quantile` does, by linear interpolation. Null if there are no samples. */
export function quantile(cumulative, share) {
  const count = cumulative.at(-1)?.[1] ?? 0;
  if (count === 0) return null;
  const rank = share * count;
  const at = cumulative.findIndex(([, upTo]) => upTo >= rank);
  const [end, upTo] = cumulative[at];
  const [start, below] = at > 0 ? cumulative[at - 1] : [0, 0];
  return end === Infinity ? start : start + (end - start) * ((rank - below) / (upTo - below));
}

/** Return the count of each bucket, not cumulative. */
export function apart(cumulative) {
  return cumulative.map(([end, count], at) => [end, count - (at > 0 ? cumulative[at - 1][1] : 0)]);
}
