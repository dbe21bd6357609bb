// Encodes and decodes the messages of resnet18/v1/classifier.proto that the page uses (protobuf's wire format).

const VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5;
export const text = { encode: (string) => new TextEncoder().encode(string), decode: (bytes) => new TextDecoder().decode(bytes) };

function varint(number) {
  const bytes = [];
  for (; number > 127; number = Math.floor(number / 128)) bytes.push((number % 128) | 128);
  return [...bytes, number];
}

export function join(parts) {
  const all = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** Encodes a length-delimited field: bytes, a string or a message. */
export const field = (number, bytes) => join([varint(number * 8 + BYTES), varint(bytes.length), bytes]);

/** Encodes `ClassifyRequest`: a file's content and a model's name, "" for the default model. */
export function classifyRequest(model, file) {
  const image = field(1, file);
  return join([...(model ? [field(1, text.encode(model))] : []), field(2, image)]);
}

/** Encodes `ListModelsRequest`. */
export const listModelsRequest = () => new Uint8Array();

/** Iterates over a message's fields, as [number, value]; values are numbers or bytes. */
function* fields(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  const readVarint = () => {
    let number = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = view.getUint8(at++);
      number += (byte & 127) * scale;
      if (byte < 128) return number;
    }
  };
  const skip = (length) => (at += length) - length;
  while (at < bytes.length) {
    const tag = readVarint();
    const number = Math.floor(tag / 8);
    switch (tag % 8) {
      case VARINT: yield [number, readVarint()]; break;
      case FIXED64: yield [number, view.getFloat64(skip(8), true)]; break;
      case FIXED32: yield [number, view.getFloat32(skip(4), true)]; break;
      case BYTES: {
        const length = readVarint();
        const start = skip(length);
        yield [number, bytes.subarray(start, start + length)];
        break;
      }
      default: throw new Error("the answer is not a protobuf message");
    }
  }
}

/** Decodes a message by `names`: {number: [name, read, repeated]}. Absent fields keep their defaults. */
export function message(bytes, names, defaults) {
  const found = { ...defaults };
  for (const [number, value] of fields(bytes)) {
    if (!(number in names)) continue;
    const [name, read, repeated] = names[number];
    if (repeated) found[name] = [...found[name], read(value)];
    else found[name] = read(value);
  }
  return found;
}

export const same = (value) => value;
export const milliseconds = (bytes) => {
  const { seconds, nanos } = message(bytes, { 1: ["seconds", same], 2: ["nanos", same] }, { seconds: 0, nanos: 0 });
  return seconds * 1e3 + nanos / 1e6;
};
const timing = (bytes) => message(bytes, {
  1: ["decode", milliseconds], 2: ["queue", milliseconds], 3: ["inference", milliseconds], 4: ["total", milliseconds],
}, { decode: 0, queue: 0, inference: 0, total: 0 });
const classification = (bytes) => message(bytes, {
  1: ["id", same], 2: ["label", text.decode], 3: ["probability", same],
}, { id: 0, label: "", probability: 0 });
const model = (bytes) => message(bytes, {
  1: ["name", text.decode], 6: ["resize", same], 7: ["engine", text.decode], 8: ["precision", text.decode],
  9: ["device", text.decode], 10: ["state", same], 11: ["problem", text.decode],
}, { name: "", resize: 256, engine: "", precision: "", device: "", state: 0, problem: "" });

/** Decodes `ClassifyResponse`: the model, its classes and the time of each stage, in ms. */
export const classifyResponse = (bytes) => message(bytes, {
  1: ["model", text.decode], 3: ["classes", classification, true], 4: ["timing", timing],
}, { model: "", classes: [], timing: timing(new Uint8Array()) });

/** Decodes the models of `ListModelsResponse`. */
export const listModelsResponse = (bytes) => message(bytes, { 1: ["models", model, true] }, { models: [] }).models;
