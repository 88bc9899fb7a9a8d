// Formats numbers for people. Must not know what they measure.

export function percent(share) {
  return `${(share * 100).toFixed(1)} %`;
}

export function milliseconds(ms) {
  if (ms >= 10000) return `${(ms / 1000).toFixed(0)} s`;
  if (ms >= 1000) return `${(ms / 1000).toFixed(2)} s`;
  return `${ms.toFixed(ms < 10 ? 2 : ms < 100 ? 1 : 0)} ms`;
}

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(1, count)) / 10));
  return `${(count / 1024 ** power).toFixed(power && count / 1024 ** power < 100 ? 1 : 0)} ${units[power]}`;
}

export function plural(count, one) {
  return `${count} ${one}${count === 1 ? "" : "s"}`;
}
