// Parses the text of /metrics, and derives rates and percentiles from two readings.

/** Parses a reading: a map from each name to its series, as {labels, value}. */
export function parse(text) {
  const series = new Map();
  for (const line of text.split("\n")) {
    const match = /^(\w+)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match) continue;
    const [, name, inside = "", value] = match;
    const labels = {};
    for (const [, label, quoted] of inside.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[label] = quoted.replace(/\\(.)/g, (_, char) => (char === "n" ? "\n" : char));
    }
    if (!series.has(name)) series.set(name, []);
    series.get(name).push({ labels, value: value === "+Inf" ? Infinity : Number(value) });
  }
  return series;
}

/** The series of a name that have these labels; a list matches any of its values. */
export function find(reading, name, labels = {}) {
  const wanted = Object.entries(labels);
  return (reading.get(name) ?? []).filter((one) => wanted.every(([label, value]) => [value].flat().includes(one.labels[label])));
}

/** The sum of such series; null if there are none. */
export function sum(reading, name, labels) {
  const found = find(reading, name, labels);
  return found.length ? found.reduce((total, { value }) => total + value, 0) : null;
}

/** How much a counter has grown between two readings; null if it does not exist. */
export function growth(before, after, name, labels) {
  const now = sum(after, name, labels);
  if (now === null) return null;
  return Math.max(0, now - (sum(before, name, labels) ?? 0));
}

/** The quantiles of a histogram's samples between two readings, in its unit; null if there were none. */
export function quantiles(before, after, name, labels, wanted) {
  const [old, young] = [buckets(before, name, labels), buckets(after, name, labels)];
  const grown = [...young].map(([le, count]) => [le, count - (old.get(le) ?? 0)]).sort(([a], [b]) => a - b);
  const total = grown.length ? grown[grown.length - 1][1] : 0;
  return wanted.map((q) => (total > 0 ? quantile(grown, q * total) : null));
}

function buckets(reading, name, labels) {
  const counts = new Map();
  for (const { labels: { le }, value } of find(reading, `${name}_bucket`, labels)) {
    const bound = le === "+Inf" ? Infinity : Number(le);
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  return counts;
}

/** Interpolates linearly within a bucket, as Prometheus's histogram_quantile; the last bucket has no upper bound. */
function quantile(grown, rank) {
  let [lower, below] = [0, 0];
  for (const [bound, count] of grown) {
    if (count >= rank && count > below) {
      return bound === Infinity ? lower : lower + (bound - lower) * ((rank - below) / (count - below));
    }
    [lower, below] = [bound, count];
  }
  return lower;
}
