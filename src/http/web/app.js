// The page: polls the server's state and metrics every second and shows them.

import { Code, listModels } from "./calls.js";
import { Chart, SAMPLES, figure, short } from "./chart.js";
import { find, growth, parse, quantiles, sum } from "./metrics.js";
import { offerTeaching } from "./teach.js";
import { askForToken, limit, offer, start } from "./try.js";

/** Time between two polls, in ms. */
const STEP = 1000;
/** A server that takes longer to answer counts as unreachable, in ms. */
const POLL_TIMEOUT = 3000;
/** Rates and percentiles cover this time, in ms. */
const WINDOW = 10_000;
/** Time between two calls of ListModels, in ms. */
const MODELS_STEP = 5000;
const QUANTILES = [0.5, 0.95, 0.99];
const STAGES = [
  { name: "Whole request", metric: "classifier_request_duration_seconds", labels: { method: ["Classify", "ModelInfer"] } },
  { name: "Queue", metric: "classifier_stage_duration_seconds", labels: { stage: "queue" } },
  { name: "Decoding", metric: "classifier_stage_duration_seconds", labels: { stage: "decode" } },
  { name: "Inference", metric: "classifier_stage_duration_seconds", labels: { stage: "inference" } },
];
const STATES = {
  starting: ["starting", "The server is starting: its models are being loaded, checked and warmed up."],
  ready: ["ready", ""],
  no_model: ["no model", "No model is served"],
  stalled: ["stalled", "The server does not get on with its work"],
  draining: ["shutting down", "The server is shutting down. It finishes the requests it has accepted."],
  failed: ["failed", "The server has failed"],
  gone: ["not reachable", "The server does not answer. Is it still running? Trying again every second."],
};

const at = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const charts = {
  fps: new Chart(at("fps"), { least: 10 }),
  latency: new Chart(at("latency"), { series: QUANTILES.length, least: 10 }),
  queue: new Chart(at("queue"), { least: 10 }),
  saturation: new Chart(at("saturation"), { least: 100, fixed: true }),
};
/** The percentiles of each stage, as samples for the latency chart. */
const history = STAGES.map(() => []);
let chosen = 0;
/** The readings within the window, as {time, metrics}, oldest first. */
let readings = [];
let lastSample = null;
let lastModels = -Infinity;
/** The last answer of ListModels; null if there is none. */
let models = null;

const perSecond = (value) => (value === null ? "–" : value.toFixed(value >= 99.95 ? 0 : 1));

async function get(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(POLL_TIMEOUT), cache: "no-store", credentials: "omit" });
  if (!response.ok) throw new Error(`${path}: HTTP ${response.status}`);
  return response;
}

function showState(state, reason) {
  const [word, sentence] = STATES[state];
  const [pill, banner] = [at("state"), at("banner")];
  if (pill.dataset.state !== state) {
    pill.dataset.state = state;
    pill.textContent = word;
    lastModels = -Infinity;
  }
  banner.hidden = !sentence;
  banner.classList.toggle("wait", state === "starting" || state === "draining");
  const text = reason ? `${sentence}: ${reason}` : sentence;
  if (banner.textContent !== text) banner.textContent = text;
}

/** Polls the server once. */
async function poll() {
  try {
    const [state, metrics] = await Promise.all([
      get("/state").then((response) => response.json()),
      get("/metrics").then((response) => response.text()),
    ]);
    at("version").textContent = state.version;
    showState(state.state, state.reason);
    limit(state.max_message_bytes);
    offerTeaching(state.teach, updateModels);
    read(parse(metrics));
    // While the token form is open, a call would only be rejected again.
    if (at("token-form").hidden && performance.now() - lastModels > MODELS_STEP) await updateModels();
  } catch {
    showState("gone");
    readings = [];
    sample({ fps: null, latency: STAGES.map(() => [null, null, null]), queue: null, saturation: null });
  }
}

function read(metrics) {
  const time = performance.now();
  const started = sum(metrics, "process_start_time_seconds");
  if (readings.length && sum(readings[0].metrics, "process_start_time_seconds") !== started) readings = [];
  readings.push({ time, metrics });
  while (readings.length > 2 && time - readings[1].time >= WINDOW) readings.shift();
  const before = readings[0];
  const seconds = (time - before.time) / 1000;
  const rate = (name, labels) => {
    const grown = growth(before.metrics, metrics, name, labels);
    return grown === null || seconds === 0 ? null : grown / seconds;
  };
  const latency = STAGES.map(({ metric, labels }) =>
    quantiles(before.metrics, metrics, metric, labels, QUANTILES).map((value) => value && value * 1000));
  const workers = sum(metrics, "classifier_workers");
  const busy = rate("classifier_busy_seconds_total");
  sample({
    fps: sum(metrics, "classifier_fps") ?? 0,
    latency,
    queue: sum(metrics, "classifier_queue_depth") ?? 0,
    saturation: workers && busy !== null ? Math.min(100, (busy / workers) * 100) : null,
  });
  notes(metrics, workers, rate("classifier_rejected_total", { reason: "queue_full" }));
  if (models === null) showModels(fromMetrics(metrics));
}

/** Adds one sample to each chart, and gaps for the seconds without a poll. */
function sample({ fps, latency, queue, saturation }) {
  const now = performance.now();
  const missed = lastSample === null ? 0 : Math.round((now - lastSample) / STEP) - 1;
  lastSample = now;
  for (let i = 0; i < Math.min(missed, SAMPLES); i++) add(null, STAGES.map(() => [null, null, null]), null, null);
  add(fps, latency, queue, saturation);
  charts.latency.replace(history[chosen]);
  const value = (id, text) => (at(id).querySelector(".now b").textContent = text);
  value("fps", perSecond(fps));
  value("queue", short(queue));
  value("saturation", saturation === null ? "–" : saturation.toFixed(0));
  charts.fps.describe(`Images per second over the last two minutes; now ${perSecond(fps)}`);
  charts.queue.describe(`Images waiting, over the last two minutes; now ${short(queue)}`);
  charts.saturation.describe(`Busy cores in percent over the last two minutes; now ${short(saturation)}`);
  showLatency(latency);
}

function add(fps, latency, queue, saturation) {
  charts.fps.add([fps]);
  charts.queue.add([queue]);
  charts.saturation.add([saturation]);
  latency.forEach((values, stage) => {
    history[stage].push(values);
    if (history[stage].length > SAMPLES) history[stage].shift();
  });
}

function showLatency(latency) {
  const now = latency[chosen].map(figure);
  [...at("latency").querySelectorAll(".now b")].forEach((place, i) => (place.textContent = now[i]));
  const name = STAGES[chosen].name;
  at("latency").querySelector("h3").textContent = chosen === 0 ? "Latency, ms" : `${name}, ms`;
  charts.latency.describe(`${name} in milliseconds over the last two minutes; now p50 ${now[0]}, p95 ${now[1]}, p99 ${now[2]}`);
  [...at("stages").rows].forEach((row, stage) => {
    latency[stage].forEach((value, i) => (row.cells[i + 1].textContent = figure(value)));
  });
}

function notes(metrics, workers, rejected) {
  const capacity = sum(metrics, "classifier_queue_capacity");
  const places = capacity ? `of ${short(capacity)} places` : "";
  const rejections = rejected > 0 ? `${figure(rejected)} per second rejected` : "";
  at("queue").querySelector(".muted").textContent = [places, rejections].filter(Boolean).join(", ");
  at("saturation").hidden = workers === null;
  at("saturation").querySelector(".muted").textContent = workers ? `of ${short(workers)} core${workers > 1 ? "s" : ""}` : "";
}

async function updateModels() {
  lastModels = performance.now();
  try {
    models = await listModels();
    showModels(models);
    offer(models);
  } catch (error) {
    models = null;
    if (error.code === Code.unauthenticated) askForToken(error.message, () => (lastModels = -Infinity));
  }
}

/** What the metrics tell about the models, for pages without a token. */
function fromMetrics(metrics) {
  return find(metrics, "classifier_engine_info").filter(({ value }) => value === 1).map(({ labels }) => ({
    name: labels.model, engine: labels.engine, precision: labels.precision, device: labels.device,
    state: sum(metrics, "classifier_model_ready", { model: labels.model }) === 1 ? 2 : 1, problem: "",
  }));
}

function showModels(list) {
  const text = (tag, name, content) => {
    const element = document.createElement(tag);
    element.className = name;
    element.textContent = content;
    return element;
  };
  const items = list.map(({ name, engine, precision, device, state, problem }) => {
    const item = document.createElement("li");
    item.append(text("span", "name", name));
    if (state !== 2) item.append(text("span", "tag", { 3: "failed", 4: "unloaded" }[state] ?? "loading"));
    const where = [engine, precision, device].filter(Boolean).join(" · ");
    if (where) item.append(text("div", "muted", where));
    if (problem) item.append(text("div", "problem", state === 2 ? `Its newest file is not served: ${problem}` : problem));
    return item;
  });
  const place = at("model-list");
  const same = items.map((item) => item.textContent).join() === [...place.children].map((item) => item.textContent).join();
  if (!same && items.length) place.replaceChildren(...items);
}

/** Makes a table row for each stage, with a button that selects it for the chart. */
function makeStages() {
  STAGES.forEach(({ name }, stage) => {
    const row = at("stages").insertRow();
    const head = document.createElement("th");
    head.scope = "row";
    const label = document.createElement("label");
    const button = Object.assign(document.createElement("input"), { type: "radio", name: "stage", checked: stage === chosen });
    button.addEventListener("change", () => {
      chosen = stage;
      charts.latency.replace(history[stage]);
      showLatency(history.map((samples) => samples.at(-1) ?? [null, null, null]));
    });
    label.append(button, name);
    head.append(label);
    row.append(head);
    QUANTILES.forEach(() => (row.insertCell().textContent = "–"));
  });
}

/** Polls while the page is visible. */
async function follow() {
  for (;;) {
    if (document.hidden) {
      await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
      readings = [];
      continue;
    }
    const began = performance.now();
    await poll();
    await sleep(Math.max(100, STEP - (performance.now() - began)));
  }
}

makeStages();
start();
follow();
