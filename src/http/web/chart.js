// An SVG line chart of the last two minutes.

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [240, 100];
/** The number of samples that a chart shows, one per second. */
export const SAMPLES = 120;

function make(name, attributes, parent) {
  const element = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
  parent.append(element);
  return element;
}

/** Rounds up to 1, 2 or 5 times a power of ten. */
function round(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

/** Formats a measurement with three significant digits. */
export function figure(value) {
  if (value === null) return "–";
  return value.toFixed(value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2);
}

/** Formats a number that is often whole. */
export const short = (value) => (Number.isInteger(value) ? String(value) : figure(value));

export class Chart {
  /** Draws into the `.plot` of `figure`: `series` lines on a scale that reaches at least to `least`. */
  constructor(figure, { series = 1, least = 1, fixed = false }) {
    Object.assign(this, { figure, least, fixed });
    this.samples = [];
    const plot = figure.querySelector(".plot");
    const scale = document.createElement("div");
    scale.className = "scale";
    scale.ariaHidden = "true";
    this.ticks = [0, 1, 2].map(() => scale.appendChild(document.createElement("span")));
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    for (const y of [0, HEIGHT / 2, HEIGHT]) make("line", { class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y }, this.svg);
    this.area = series === 1 ? make("path", { class: "area" }, this.svg) : null;
    this.lines = Array.from({ length: series }, (_, i) => make("path", { class: `line line-${i + 1}` }, this.svg));
    plot.append(scale, this.svg);
    this.draw();
  }

  /** Adds one value per line; null leaves a gap. */
  add(values) {
    this.samples.push(values);
    if (this.samples.length > SAMPLES) this.samples.shift();
    this.draw();
  }

  /** Replaces all samples. */
  replace(samples) {
    this.samples = samples.slice(-SAMPLES);
    this.draw();
  }

  draw() {
    const highest = Math.max(this.least, ...this.samples.flat().map((value) => value ?? 0));
    const top = this.fixed ? this.least : round(highest);
    this.ticks.forEach((tick, i) => (tick.textContent = short((top * (2 - i)) / 2)));
    const y = (value) => (HEIGHT * (1 - Math.min(value, top) / top)).toFixed(1);
    const first = SAMPLES - this.samples.length;
    const x = (i) => (((first + i) * WIDTH) / (SAMPLES - 1)).toFixed(1);
    this.lines.forEach((line, n) => {
      const path = [];
      this.samples.forEach((sample, i) => {
        const value = sample[n] ?? null;
        const begins = (this.samples[i - 1]?.[n] ?? null) === null;
        if (value !== null) path.push(`${begins ? "M" : "L"}${x(i)} ${y(value)}`);
        // A line to its own start makes a single sample visible as a dot.
        if (value !== null && begins) path.push(`L${x(i)} ${y(value)}`);
      });
      line.setAttribute("d", path.join(""));
    });
    this.area?.setAttribute("d", this.areas(x, y));
  }

  /** The area under the line: one shape per stretch without a gap. */
  areas(x, y) {
    const shapes = [];
    let start = null;
    this.samples.concat([[null]]).forEach(([value], i) => {
      if (value !== null && start === null) start = i;
      if (value !== null || start === null) return;
      const stretch = this.samples.slice(start, i).map(([value], n) => `L${x(start + n)} ${y(value)}`);
      shapes.push(`M${x(start)} ${HEIGHT}${stretch.join("")}L${x(i - 1)} ${HEIGHT}Z`);
      start = null;
    });
    return shapes.join("");
  }

  /** Describes the chart for screen readers. */
  describe(text) {
    this.svg.setAttribute("aria-label", text);
  }
}
