// The tab "Teach": classes of one's own, taught by pictures and served at once.

import { Code, NONE } from "./calls.js";
import { Card, ENOUGH } from "./teach_card.js";
import { explain, listDatasets, readDataset, remove, train } from "./teach_calls.js";
import { confirmed, counted } from "./teach_dialogs.js";
import { chosen, className, dropped, MOST_FILES, nameProblem } from "./teach_drop.js";
import { MOST_WAITING, Pictures } from "./teach_pictures.js";
import { showEarlier, showResult } from "./teach_result.js";
import { camera, choose, pause, startCamera } from "./try.js";

/** The pause before a call is made again that the server had no time for, in ms, and how often it is made. */
const [PAUSE, ATTEMPTS] = [2000, 30];

const at = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** What the tab keeps while it is open: the dataset, and classes that have no pictures yet. */
const memory = {
  read: () => JSON.parse(sessionStorage.getItem("teach") ?? "{}"),
  write: (change) => sessionStorage.setItem("teach", JSON.stringify({ ...memory.read(), ...change })),
};

let refreshModels = async () => {};
let isReady = false;
/** The name of the dataset that is shown; null if there is none. */
let current = null;
let known = [];
/** The pictures of the dataset that is shown. */
let pictures = null;
const cards = new Map();
/** The classes that have changed since they were drawn. */
const changed = new Set();
let isTaking = false;
let isLearning = false;
/** The revision of the pictures that the model was learned from; null if that is not known. */
let learned = null;

/** Offers the tab if the server can be taught; `refresh` makes the page list the models again. */
export function offerTeaching(canTeach, refresh) {
  refreshModels = refresh;
  if (!canTeach) showTab("watch");
  at("tabs").hidden = !canTeach;
  if (canTeach) at("watch").setAttribute("role", "tabpanel");
  if (!canTeach) return;
  if (!isReady) {
    isReady = true;
    connect();
    if (location.hash === "#teach") showTab("teach");
  }
  at("teach-token").hidden = at("token-form").hidden;
}

function showTab(name) {
  for (const other of ["watch", "teach"]) {
    const isShown = other === name;
    at(other).hidden = !isShown;
    at(`tab-${other}`).ariaSelected = String(isShown);
    at(`tab-${other}`).tabIndex = isShown ? 0 : -1;
  }
  document.body.classList.toggle("teaching", name === "teach");
  if (!isReady) return;
  if ((location.hash === "#teach") !== (name === "teach")) history.replaceState(null, "", name === "teach" ? "#teach" : location.pathname);
  if (name === "teach" && !pictures) load();
}

function trouble(message, place = "teach-trouble") {
  at(place).hidden = !message;
  at(place).textContent = message ?? "";
}

const say = (text) => (at("teach-spoken").textContent = text);

/** Makes a call until the server has time for it; `told` gets the reason meanwhile. */
async function patiently(call, told) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await call();
    } catch (error) {
      if (!error.isTransient || error.code === Code.deadline || attempt === ATTEMPTS) throw error;
      told(`${explain(error)} Trying again.`);
      await sleep(PAUSE);
    }
  }
}

let isLoading = false;

/** Lists the datasets and shows the one that was shown last. */
async function load(wish = memory.read().dataset) {
  if (isLoading) return;
  isLoading = true;
  try {
    known = (await patiently(listDatasets, trouble)).map(({ name }) => name);
    trouble(null);
    // A dataset without pictures is not on the server yet.
    const names = wish && !known.includes(wish) && memory.read().isNew ? [...known, wish] : known;
    at("dataset").replaceChildren(...names.map((name) => new Option(name, name)));
    const name = names.includes(wish) ? wish : names[0] ?? null;
    await show(name);
  } catch (error) {
    trouble(explain(error));
    // Choosing the tab again loads it again.
    pictures?.forget();
    pictures = null;
  } finally {
    isLoading = false;
  }
}

/** Shows a dataset; null shows that there is none yet. */
async function show(name) {
  pictures?.forget();
  cards.forEach((card) => card.element.remove());
  cards.clear();
  current = name;
  learned = null;
  at("result").hidden = true;
  at("dataset-row").hidden = at("dataset-form").hidden = at("lesson").hidden = true;
  if (name === null) {
    pictures = null;
    askForName();
    return;
  }
  const mine = pictures = new Pictures(name, (className) => {
    changed.add(className);
    schedule();
  });
  const found = await patiently(() => readDataset(name), trouble);
  if (mine !== pictures) return;
  at("dataset").value = name;
  at("dataset-row").hidden = at("lesson").hidden = false;
  memory.write({ dataset: name, isNew: !found });
  for (const { name: className, pictures: names } of found?.classes ?? []) addCard(className).pictures.known(className, names);
  for (const className of memory.read().classes?.[name] ?? []) addCard(className);
  at("train").textContent = found?.model ? "Train again" : "Train";
  if (found?.model) showEarlier(at("result"), name, found.model, look);
  draw();
}

function askForName() {
  at("dataset-form").hidden = false;
  at("dataset-row").hidden = true;
  at("dataset-cancel").hidden = current === null;
  at("dataset-name").value = "";
}

async function create(event) {
  event.preventDefault();
  const name = at("dataset-name").value.trim();
  const isServed = [...at("model").options].some(({ value }) => value === name);
  const problem = nameProblem(name)
    ?? (isServed && !known.includes(name) ? `A model called “${name}” is served that was not taught here; choose another name.` : null);
  trouble(problem);
  if (problem) return;
  if (!(await mayLeave())) return;
  memory.write({ dataset: name, isNew: true });
  await load(name);
  at("class-name").focus();
}

/** Whether the pictures that are still on their way may be forgotten. */
async function mayLeave() {
  const waiting = pictures?.waiting ?? 0;
  return !waiting || confirmed(`${counted(waiting)} of “${current}” have not been sent yet. Leave them out?`, "Leave them out");
}

async function chooseDataset() {
  const name = at("dataset").value;
  if (!(await mayLeave())) {
    at("dataset").value = current;
    return;
  }
  choose(name);
  await load(name);
}

async function removeDataset() {
  const name = current;
  const all = [...cards.keys()].reduce((sum, one) => sum + pictures.kept(one).length, 0);
  if (!(await confirmed(`Remove “${name}” with its ${counted(all)} and its model? This can't be undone.`, "Remove"))) return;
  try {
    if (await readDataset(name)) await remove(name);
    memory.write({ dataset: null, isNew: false, classes: { ...memory.read().classes, [name]: [] } });
    await load(null);
    await refreshModels();
    say(`${name} was removed.`);
  } catch (error) {
    trouble(explain(error));
  }
}

/** The card of a class, which is made if it is not there. */
function addCard(name) {
  if (!cards.has(name)) {
    const card = new Card(pictures, name, { taking, receive, gone });
    cards.set(name, card);
    at("cards").append(card.element);
  }
  return cards.get(name);
}

function gone({ name }) {
  cards.delete(name);
  remember();
  draw();
  at("class-name").focus();
  say(`${name} was removed.`);
}

/** Keeps the names of classes without pictures over a reload. */
function remember() {
  const empty = [...cards.keys()].filter((name) => !pictures.kept(name).length);
  memory.write({ classes: { ...memory.read().classes, [current]: empty } });
}

function addClass(name) {
  const problem = nameProblem(name);
  trouble(problem);
  if (problem) return;
  const card = addCard(name);
  remember();
  draw();
  card.shutter.focus();
  card.element.scrollIntoView({ block: "nearest", behavior: "smooth" });
}

/** Takes files to a class or, without one, to the classes that their folders are called. */
function receive(found, card) {
  const { files = found, others = 0, isCut = false } = found;
  if (!pictures) {
    trouble("Give the model a name first.");
    return;
  }
  const groups = new Map();
  let loose = 0;
  for (const { folder, file } of files) {
    const name = card?.name ?? className(folder);
    if (name) groups.set(name, [...(groups.get(name) ?? []), file]);
    else loose += 1;
  }
  let left = 0;
  for (const [name, some] of groups) {
    addCard(name);
    left += pictures.add(name, some);
  }
  remember();
  const notes = [
    loose && `${counted(loose, "photo")} in no folder: drop them on the class that they belong to.`,
    others && `${counted(others, "file")} ${others === 1 ? "was" : "were"} left out: no ${others === 1 ? "picture" : "pictures"}.`,
    (isCut || left) && `Only ${isCut ? `the first ${MOST_FILES} files were taken` : `${MOST_WAITING} pictures can wait at once; ${left} were left out`}.`,
  ].filter(Boolean);
  const text = notes.join(" ") || null;
  if (card) card.tell("drop", text);
  else trouble(text);
  draw();
}

function taking(isActive) {
  isTaking = isActive;
  if (!isActive && pictures?.waiting) say(`${counted(pictures.waiting)} on the way.`);
  schedule();
}

let isScheduled = false;

/** Draws what has changed, once for all changes until the next frame. */
function schedule() {
  if (isScheduled) return;
  isScheduled = true;
  requestAnimationFrame(() => {
    isScheduled = false;
    draw();
  });
}

function draw() {
  if (!pictures) return;
  for (const name of changed) cards.get(name)?.update();
  changed.clear();
  at("result").refresh?.();
  pause(isTaking || pictures.waiting > 0);
  at("offer-none").hidden = cards.has(NONE);
  if (isLearning) return;
  const { all, done } = pictures.progress;
  const missing = whatIsMissing();
  at("progress").hidden = !all;
  if (all) Object.assign(at("progress"), { max: all, value: done });
  // Not a part of the status, which screen readers read out whenever it changes.
  at("progress-note").textContent = all ? `${done} of ${counted(all)}` : "";
  at("train").disabled = missing.length > 0 || all > 0;
  const total = [...cards.keys()].reduce((sum, name) => sum + pictures.kept(name).length, 0);
  const text = all ? "Sending pictures …"
    : missing.join(" ") || (learned === pictures.revision ? "Add pictures and train again, as often as you like."
      : `Ready to learn ${counted(cards.size, "class")} from ${counted(total)}.`);
  if (at("missing").textContent !== text) at("missing").textContent = text;
}

/** What has to be done before a model can be learned, as sentences. */
function whatIsMissing() {
  const lacking = [...cards.keys()].map((name) => [name, ENOUGH - pictures.kept(name).length]).filter(([, lacks]) => lacks > 0);
  const wants = lacking.slice(0, 3).map(([name, lacks]) => `“${name}” needs ${lacks} more ${lacks === 1 ? "picture" : "pictures"}.`);
  if (lacking.length > 3) wants.push(`So do ${counted(lacking.length - 3, "class")} more.`);
  if (cards.size === 0) return ["Add two classes to begin."];
  return cards.size === 1 ? ["Add a second class.", ...wants] : wants;
}

async function learn() {
  const name = current;
  const mine = pictures;
  const { revision } = pictures;
  isLearning = true;
  const began = performance.now();
  at("train").disabled = true;
  at("progress").removeAttribute("value");
  at("progress").hidden = false;
  trouble(null, "train-trouble");
  at("missing").textContent = "Learning …";
  const clock = setInterval(() => (at("progress-note").textContent = `${Math.round((performance.now() - began) / 1000)} s`), 1000);
  try {
    const result = await patiently(() => train(name), (text) => trouble(text, "train-trouble"));
    trouble(null, "train-trouble");
    choose(name);
    await refreshModels();
    if (mine !== pictures) return;
    learned = revision;
    showResult(at("result"), result, { pictures, removePicture, look });
    at("result").focus({ preventScroll: true });
    at("result").scrollIntoView({ block: "nearest", behavior: "smooth" });
    at("train").textContent = "Train again";
    say(`${name} is served. ${Math.round(result.accuracy * 100)} percent recognised.`);
  } catch (error) {
    trouble(explain(error), "train-trouble");
  } finally {
    clearInterval(clock);
    isLearning = false;
    draw();
  }
}

async function removePicture(picture) {
  await cards.get(picture.className)?.removePicture(picture);
}

/** Shows what the model answers now. */
async function look() {
  choose(current);
  await refreshModels();
  at("try").scrollIntoView({ behavior: "smooth" });
  if (!camera.isOn) await startCamera();
}

/** Connects the controls. */
function connect() {
  addEventListener("hashchange", () => showTab(location.hash === "#teach" ? "teach" : "watch"));
  const tabs = ["watch", "teach"].map((name) => at(`tab-${name}`));
  tabs.forEach((tab) => {
    tab.addEventListener("click", () => showTab(tab.id.slice(4)));
    tab.addEventListener("keydown", ({ key }) => {
      if (key !== "ArrowLeft" && key !== "ArrowRight") return;
      const other = tabs.find((one) => one !== tab);
      showTab(other.id.slice(4));
      other.focus();
    });
  });
  at("dataset-form").addEventListener("submit", create);
  at("dataset").addEventListener("change", chooseDataset);
  at("dataset-new").addEventListener("click", () => {
    askForName();
    at("dataset-name").focus();
  });
  at("dataset-cancel").addEventListener("click", () => {
    at("dataset-form").hidden = true;
    at("dataset-row").hidden = false;
    at("dataset-new").focus();
  });
  at("dataset-remove").addEventListener("click", removeDataset);
  at("class-form").addEventListener("submit", (event) => {
    event.preventDefault();
    addClass(at("class-name").value.trim());
    at("class-name").value = "";
  });
  at("add-none").addEventListener("click", () => addClass(NONE));
  at("folders").addEventListener("change", ({ target }) => {
    receive(chosen(target.files), null);
    target.value = "";
  });
  at("train").addEventListener("click", learn);
  const panel = at("teach");
  panel.addEventListener("dragover", (event) => {
    event.preventDefault();
    // The rest of the page would take it for a photo to classify.
    event.stopPropagation();
    at("stage").classList.remove("over");
  });
  panel.addEventListener("drop", async (event) => {
    event.preventDefault();
    event.stopPropagation();
    receive(await dropped(event.dataTransfer), null);
  });
  addEventListener("beforeunload", (event) => pictures?.waiting && event.preventDefault());
}
