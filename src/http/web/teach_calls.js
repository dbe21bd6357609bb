// Calls the Teacher service (resnet18/v1/teacher.proto).

import { call, CallError, Code } from "./calls.js";
import { field, join, message, milliseconds, same, text } from "./protobuf.js";
import { askForToken } from "./try.js";

const TEACHER = "resnet18.v1.Teacher";
/** How long a picture may take to be sent and learned from, a dataset to be learned, and a file to arrive, in ms. */
const [PICTURE, LESSON, FILE] = [30_000, 900_000, 600_000];

const strings = (...values) => values.flatMap((value, i) => (value ? [field(i + 1, text.encode(value))] : []));
const names = (...values) => join(strings(...values));

const refusal = (bytes) => message(bytes, { 2: ["reason", text.decode] }, { reason: "" });
const added = (bytes) => message(bytes, {
  1: ["kept", same], 2: ["known", same], 4: ["refusals", refusal, true], 5: ["examples", text.decode, true],
}, { kept: 0, known: 0, refusals: [], examples: [] });

const taughtClass = (bytes) => message(bytes, {
  1: ["name", text.decode], 2: ["count", same], 4: ["pictures", text.decode, true],
}, { name: "", count: 0, pictures: [] });
const taughtModel = (bytes) => message(bytes, {
  1: ["version", text.decode], 2: ["accuracy", same], 3: ["examples", same],
}, { version: "", accuracy: 0, examples: 0 });
const dataset = (bytes) => message(bytes, {
  1: ["name", text.decode], 2: ["classes", taughtClass, true], 3: ["model", taughtModel],
}, { name: "", classes: [], model: null });
const datasets = (bytes) => message(bytes, { 1: ["datasets", dataset, true] }, { datasets: [] }).datasets;

const skipped = (bytes) => message(bytes, {
  1: ["class", text.decode], 2: ["picture", text.decode], 3: ["reason", text.decode],
}, { class: "", picture: "", reason: "" });
const accuracy = (bytes) => message(bytes, {
  1: ["class", text.decode], 2: ["examples", same], 3: ["right", same],
}, { class: "", examples: 0, right: 0 });
const confusion = (bytes) => message(bytes, {
  1: ["class", text.decode], 2: ["predicted", text.decode], 3: ["examples", same],
}, { class: "", predicted: "", examples: 0 });
const mistake = (bytes) => message(bytes, {
  1: ["class", text.decode], 2: ["picture", text.decode], 3: ["predicted", text.decode], 4: ["probability", same],
}, { class: "", picture: "", predicted: "", probability: 0 });
const trained = (bytes) => message(bytes, {
  1: ["model", text.decode], 2: ["version", text.decode], 3: ["examples", same], 4: ["skipped", skipped, true],
  5: ["accuracy", same], 6: ["classes", accuracy, true], 7: ["confusions", confusion, true],
  8: ["mistakes", mistake, true], 9: ["took", milliseconds],
}, { model: "", version: "", examples: 0, skipped: [], accuracy: 0, classes: [], confusions: [], mistakes: [], took: 0 });

const chunk = (bytes) => message(bytes, { 1: ["content", same], 2: ["size", same] }, { content: new Uint8Array(), size: 0 });

/** Calls a method; where the server wants a token, again once the user has entered one. */
async function ask(method, request, options) {
  for (;;) {
    try {
      return await call(`${TEACHER}/${method}`, request, options);
    } catch (error) {
      if (error.code !== Code.unauthenticated) throw error;
      await new Promise((resolve) => askForToken(error.message, resolve));
    }
  }
}

/**
 * Adds a picture to a class. Returns its name, and whether the server did not have it yet; throws a `CallError` with
 * the reason if the server does not keep it.
 */
export async function addPicture(dataset, className, bytes) {
  const request = join([...strings(dataset, className), field(3, bytes)]);
  const { examples, kept, refusals } = added(await ask("AddExamples", request, { timeout: PICTURE }));
  if (refusals.length) throw new CallError(Code.invalid, refusals[0].reason);
  return { name: examples[0] ?? null, isNew: kept > 0 };
}

/** Removes these pictures of a class; without pictures the class, without a class the dataset and its model. */
export const remove = (dataset, className = "", pictures = []) => ask("RemoveExamples",
  join([names(dataset, className), ...pictures.map((picture) => field(3, text.encode(picture)))]), { each: () => {} });

/** Lists all datasets. */
export const listDatasets = async () => datasets(await listed(""));

/** A dataset with the names of its pictures; null if there is none of that name. */
export async function readDataset(name) {
  try {
    return datasets(await listed(name))[0] ?? null;
  } catch (error) {
    if (error.code === Code.notFound) return null;
    throw error;
  }
}

/** An answer without any dataset is an empty message. */
async function listed(name) {
  let answer = new Uint8Array();
  await ask("ListDatasets", names(name), { each: (bytes) => (answer = bytes) });
  return answer;
}

/** Learns a dataset and waits until its model is served. */
export const train = async (dataset) => trained(await ask("Train", names(dataset), { timeout: LESSON }));

/** The content of a picture's file. */
export const getPicture = (dataset, className, picture) => file("GetExample", names(dataset, className, picture));

/** The content of a model's file; `progress` gets the share that has arrived, 0 to 1. */
export const getModel = (dataset, progress) => file("GetModel", names(dataset), progress);

async function file(method, request, progress = () => {}) {
  const parts = [];
  let bytes = 0;
  const each = (part) => {
    const { content, size } = chunk(part);
    // A copy: the part is a view of a larger buffer that would be kept.
    parts.push(content.slice());
    bytes += content.length;
    progress(size ? bytes / size : 0);
  };
  await ask(method, request, { timeout: FILE, each });
  return new Blob(parts);
}

/** What went wrong, for the user. */
export function explain(error) {
  if (!(error instanceof CallError)) return error.message;
  switch (error.code) {
    case Code.exhausted: return `The server is busy: ${error.message}`;
    case Code.unavailable: return `The server is not available: ${error.message}`;
    case Code.deadline: return "The server took too long.";
    case Code.outOfRange: return `That is too large for this server: ${error.message}`;
    default: return `${error.message.charAt(0).toUpperCase()}${error.message.slice(1)}`;
  }
}
