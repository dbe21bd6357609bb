// "Try it": sends a photo or camera pictures to the server and shows the classes.

import { Camera } from "./camera.js";
import { classify, Code, NONE, token } from "./calls.js";
import { figure } from "./chart.js";
import { toJpeg } from "./picture.js";

const TOP = 5;
/** Time before a call is retried when the server is overloaded or unreachable, in ms. */
const RETRY_PAUSE = 1000;
/** The least time between two updates of the figures, and of the spoken result, in ms. */
const [FIGURES, SPEECH] = [250, 3000];
/** Upper bound for the bytes of a message besides its photo. */
const ENVELOPE = 1024;
/** The longest side of a photo that is converted here, in pixels: more than any model looks at. */
const CONVERTED = 2048;
/** The answers' rate covers this time, in ms. */
const RATE_WINDOW = 2000;

const at = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const ms = (value) => `${figure(value)} ms`;

/** Numbers what is shown: each new photo and each start of the camera begins a session. */
let session = 0;
let answered = [];
let newest = 0;
let lastFigures = 0;
let lastSpeech = 0;
let spokenLabel = "";
/** Callbacks to run once a token is entered. */
let waiting = [];
let photo = null;
let photoUrl = null;
/** The largest photo that the server accepts, in bytes. */
let largest = Infinity;

/** The model to choose once the server lists it; null if the user's choice holds. */
let wanted = null;

/** The page's camera. */
export const camera = new Camera(at("video"), sendPicture);
camera.onEnded = (message) => {
  cameraStopped();
  trouble(message);
};

/** Offers these models for selection. */
export function offer(models) {
  const select = at("model");
  const names = models.map((model) => model.name);
  if (names.join("\n") !== [...select.options].map((option) => option.value).join("\n")) {
    const chosen = select.value;
    select.replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(chosen)) select.value = chosen;
  }
  if (names.includes(wanted)) {
    const isNew = select.value !== wanted;
    select.value = wanted;
    wanted = null;
    if (isNew) select.dispatchEvent(new Event("change"));
  }
  at("model-choice").hidden = models.length < 2;
  camera.shorterSide = models.find((model) => model.name === select.value)?.resize || 256;
}

/** Chooses a model as soon as the server lists it. */
export const choose = (model) => (wanted = model);

/** Keeps the camera's pictures from being classified for a while. */
export function pause(isPaused) {
  camera.isPaused = isPaused;
  at("answers").classList.toggle("paused", isPaused && camera.isOn);
}

/** Sets how large a message may be, in bytes. */
export const limit = (bytes) => (largest = bytes - ENVELOPE);

/** How large a photo may be, in bytes. */
export const largestPhoto = () => largest;

/** Shows the token form; `again` runs once a token is entered. */
export function askForToken(message, again) {
  const form = at("token-form");
  if (again) waiting.push(again);
  if (!form.hidden) return;
  form.hidden = false;
  if (token.get()) trouble(message);
  token.clear();
}

function trouble(message) {
  const place = at("trouble");
  place.hidden = !message;
  if (place.textContent !== message) place.textContent = message ?? "";
}

/**
 * Classifies, with retries. Where the server can't read the file, what `other` makes of it is sent
 * once. Null if something else is shown by the time of the answer.
 */
async function ask(mine, file, other = null) {
  for (;;) {
    try {
      const answer = await classify(at("model").value, file);
      if (mine !== session) return null;
      at("token-form").hidden = true;
      trouble(null);
      return answer;
    } catch (error) {
      if (mine !== session) return null;
      if (error.code === Code.unauthenticated) {
        await new Promise((resolve) => askForToken(error.message, resolve));
        if (mine !== session) return null;
        continue;
      }
      if (error.code === Code.invalid && other) {
        const converted = await other();
        if (mine !== session) return null;
        other = null;
        if (converted) {
          file = converted;
          at("converted").hidden = false;
          continue;
        }
      }
      at("converted").hidden = true;
      trouble(explain(error));
      if (!error.isTransient && !camera.isOn) {
        clear();
        throw error;
      }
      await sleep(RETRY_PAUSE);
      if (mine !== session) return null;
      // With the camera on, the next picture is sent instead.
      if (camera.isOn) throw error;
    }
  }
}

function explain(error) {
  switch (error.code) {
    case Code.exhausted: return `The server is overloaded; trying again: ${error.message}`;
    case Code.unavailable: return `The server is unavailable; trying again every second: ${error.message}.`;
    case Code.deadline: return "The server took too long; trying again.";
    case Code.outOfRange: return `The photo is too large for this server: ${error.message}`;
    case Code.invalid: return `The server can't read this image: ${error.message}`;
    default: return `The server could not answer: ${error.message}`;
  }
}

function begin() {
  session += 1;
  answered = [];
  newest = 0;
  spokenLabel = "";
  lastFigures = lastSpeech = 0;
  trouble(null);
  at("converted").hidden = true;
  at("stage").classList.add("filled");
  return session;
}

async function showPhoto(file) {
  if (camera.isOn) stopCamera();
  const mine = begin();
  photo = file;
  if (photoUrl) URL.revokeObjectURL(photoUrl);
  photoUrl = URL.createObjectURL(file);
  const picture = at("photo");
  at("hint").hidden = true;
  picture.hidden = false;
  picture.alt = `Your photo, ${file.name}`;
  picture.onerror = () => {
    picture.hidden = true;
    at("stage").classList.remove("filled");
    at("hint").hidden = false;
    at("hint").textContent = `${file.name} (this browser can't show it)`;
  };
  picture.src = photoUrl;
  clear();
  if (file.size > largest) {
    const [has, takes] = [file.size, largest].map((bytes) => (bytes / 2 ** 20).toFixed(1));
    trouble(`${file.name} is too large: it has ${has} MiB, and this server takes ${takes} MiB.`);
    return;
  }
  let bytes;
  try {
    bytes = new Uint8Array(await file.arrayBuffer());
  } catch {
    if (mine === session) trouble(`${file.name} can't be read; is it a folder?`);
    return;
  }
  const started = performance.now();
  const answer = await ask(mine, bytes, () => toJpeg(file, CONVERTED).then((jpeg) => jpeg && jpeg.arrayBuffer()).then((bytes) => bytes && new Uint8Array(bytes))).catch(() => null);
  if (answer) show(answer, performance.now() - started);
}

async function sendPicture(file) {
  const mine = session;
  const started = performance.now();
  const answer = await ask(mine, file).catch(() => null);
  // Two calls run at once: an answer that was overtaken is not shown.
  if (!answer || started < newest) return;
  newest = started;
  show(answer, performance.now() - started);
}

/** Shows empty rows. */
function clear() {
  at("waiting").hidden = false;
  at("facts").hidden = true;
  const list = at("answers");
  list.ariaHidden = "true";
  list.replaceChildren(...Array.from({ length: TOP }, row));
}

function show(answer, trip) {
  at("waiting").hidden = true;
  at("facts").hidden = false;
  const list = at("answers");
  list.ariaHidden = null;
  const classes = answer.classes.slice(0, TOP);
  while (list.children.length < classes.length) list.append(row());
  while (list.children.length > classes.length) list.lastChild.remove();
  classes.forEach(({ label, probability }, i) => {
    const [name, percent, bar] = list.children[i].children;
    name.textContent = label || NONE;
    name.classList.toggle("none", !label);
    percent.textContent = `${(probability * 100).toFixed(1)} %`;
    bar.firstChild.style.transform = `scaleX(${probability})`;
  });
  const now = performance.now();
  answered = [...answered.filter((time) => time > now - RATE_WINDOW), now];
  figures(answer.timing, trip, now);
  speak(classes[0], now);
}

function row() {
  const item = document.createElement("li");
  for (const [tag, name] of [["span", "label"], ["span", "percent"], ["div", "bar"]]) {
    const part = document.createElement(tag);
    part.className = name;
    item.append(part);
  }
  const fill = document.createElement("i");
  fill.style.transform = "scaleX(0)";
  item.lastChild.append(fill);
  return item;
}

function figures(timing, trip, now) {
  if (now - lastFigures < FIGURES) return;
  lastFigures = now;
  at("rate").parentElement.hidden = !camera.isOn;
  // N answers span N - 1 intervals.
  const seconds = (now - answered[0]) / 1000;
  at("rate").textContent = answered.length > 1 ? ((answered.length - 1) / seconds).toFixed(1) : "–";
  at("trip").textContent = ms(trip);
  at("server-time").textContent = ms(timing.total);
  const { queue, decode, inference } = timing;
  at("server-time").title = `queue ${ms(queue)}, decode ${ms(decode)}, inference ${ms(inference)}`;
}

function speak(first, now) {
  if (!first || first.label === spokenLabel || now - lastSpeech < SPEECH && lastSpeech) return;
  spokenLabel = first.label;
  lastSpeech = now;
  at("spoken").textContent = `${first.label || NONE}, ${Math.round(first.probability * 100)} percent`;
}

/** Starts the camera. Returns what is wrong, if anything is. */
export async function startCamera() {
  const button = at("camera");
  button.disabled = true;
  try {
    trouble(null);
    await camera.start();
  } catch (error) {
    trouble(error.message);
    return error.message;
  } finally {
    button.disabled = false;
  }
  begin();
  at("photo").hidden = at("hint").hidden = true;
  at("video").hidden = false;
  button.textContent = "Stop the camera";
  button.classList.add("on");
  return null;
}

function stopCamera() {
  camera.stop();
  cameraStopped();
}

function cameraStopped() {
  session += 1;
  photo = null;
  trouble(null);
  at("converted").hidden = true;
  at("video").hidden = true;
  at("hint").hidden = false;
  at("hint").textContent = "Drop a photo here or paste one.";
  at("stage").classList.remove("filled");
  at("camera").textContent = "Use the camera";
  at("camera").classList.remove("on");
}

/** Removes the error message once the camera is allowed after all. */
async function followPermission() {
  const permission = await navigator.permissions?.query({ name: "camera" }).catch(() => null);
  permission?.addEventListener("change", () => {
    if (permission.state === "granted" && !camera.isOn) trouble(null);
  });
}

/** Connects the controls. */
export function start() {
  const stage = at("stage");
  at("file").addEventListener("change", ({ target }) => {
    if (target.files[0]) showPhoto(target.files[0]);
    // Without this, choosing the same file again would fire no event.
    target.value = "";
  });
  at("camera").addEventListener("click", () => (camera.isOn ? stopCamera() : startCamera()));
  at("model").addEventListener("change", () => photo && showPhoto(photo));
  at("model").addEventListener("input", () => (wanted = null));
  addEventListener("paste", ({ clipboardData }) => clipboardData.files[0] && showPhoto(clipboardData.files[0]));
  // Anywhere on the page: the browser would open a photo that is dropped beside the target.
  addEventListener("dragover", (event) => {
    event.preventDefault();
    stage.classList.add("over");
  });
  addEventListener("dragleave", ({ relatedTarget }) => relatedTarget || stage.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    stage.classList.remove("over");
    if (event.dataTransfer.files[0]) showPhoto(event.dataTransfer.files[0]);
  });
  at("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    token.set(at("token").value.trim());
    at("token").value = "";
    at("token-form").hidden = true;
    trouble(null);
    waiting.splice(0).forEach((resolve) => resolve());
  });
  followPermission();
  clear();
}
