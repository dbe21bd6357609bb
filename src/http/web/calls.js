// Calls the services over gRPC-Web, on the port that served the page.

import { classifyRequest, classifyResponse, join, listModelsRequest, listModelsResponse } from "./protobuf.js";

/** The status codes of gRPC that the page treats differently. */
export const Code = {
  invalid: 3, deadline: 4, notFound: 5, exhausted: 8, outOfRange: 11, unavailable: 14, unauthenticated: 16,
};

/** The class of pictures that show none of the others; answers give it no label. */
export const NONE = "nothing of these";

const CLASSIFIER = "resnet18.v1.Classifier";
const TIMEOUT = 15_000;
const TRAILERS = 0x80;
const PREFIX = 5;

/** The failure of a call. */
export class CallError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }

  /** Whether the same call may succeed in a moment. */
  get isTransient() {
    return [Code.exhausted, Code.unavailable, Code.deadline].includes(this.code);
  }
}

/** The server's token, if it requires one. Kept until the tab is closed. */
export const token = {
  get: () => sessionStorage.getItem("token"),
  set: (value) => sessionStorage.setItem("token", value),
  clear: () => sessionStorage.removeItem("token"),
};

/** Classifies the content of an image file. */
export const classify = async (model, file) => classifyResponse(await call(`${CLASSIFIER}/Classify`, classifyRequest(model, file)));

/** Lists the server's models. */
export const listModels = async () => listModelsResponse(await call(`${CLASSIFIER}/ListModels`, listModelsRequest()));

/**
 * Calls a method of a service, as "SERVICE/METHOD", within `timeout` ms. Returns the answer's message; where the answer is
 * a stream, `each` gets its messages as they arrive.
 */
export async function call(method, message, { timeout = TIMEOUT, each = null } = {}) {
  const body = new Uint8Array(PREFIX + message.length);
  new DataView(body.buffer).setUint32(1, message.length);
  body.set(message, PREFIX);
  const headers = {
    "content-type": "application/grpc-web+proto",
    "grpc-timeout": `${timeout}m`,
    ...(token.get() && { authorization: `Bearer ${token.get()}` }),
  };
  let last = null;
  let response, trailer;
  try {
    // The server enforces the deadline; this covers a server that does not answer at all.
    const signal = AbortSignal.timeout(timeout + 2000);
    response = await fetch(`/${method}`, { method: "POST", headers, body, signal, cache: "no-store", credentials: "omit" });
    if (response.ok) trailer = await read(response, each ?? ((message) => (last = message)));
  } catch {
    throw new CallError(Code.unavailable, "the server does not answer");
  }
  if (!response.ok) {
    const busy = response.status === 503;
    const reason = (await response.text().catch(() => "")).trim();
    throw new CallError(busy ? Code.unavailable : 2, reason || `HTTP ${response.status}`);
  }
  // The status is in the headers if there is no body, else in the last frame.
  const status = trailer ?? ((name) => response.headers.get(name));
  const code = Number(status("grpc-status") ?? 2);
  if (code !== 0) throw new CallError(code, plain(status("grpc-message")) || `the call failed with code ${code}`);
  if (!each && !last) throw new CallError(2, "the answer is empty");
  return last;
}

/** Gives each message of a response to `take`, and returns the last frame's status, if there is one. */
async function read(response, take) {
  const reader = response.body.getReader();
  let [bytes, status] = [new Uint8Array(), null];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return status;
    bytes = bytes.length ? join([bytes, value]) : value;
    let at = 0;
    while (at + PREFIX <= bytes.length) {
      const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(at + 1);
      const end = at + PREFIX + length;
      if (end > bytes.length) break;
      const frame = bytes.subarray(at + PREFIX, end);
      if (bytes[at] & TRAILERS) status = trailers(frame);
      else take(frame);
      at = end;
    }
    bytes = bytes.subarray(at);
  }
}

function trailers(frame) {
  const lines = new TextDecoder().decode(frame).split("\r\n").map((line) => line.split(/:\s*(.*)/s));
  const values = Object.fromEntries(lines.map(([name, value]) => [name.toLowerCase(), value]));
  return (name) => values[name] ?? null;
}

/** Decodes a status message, which gRPC percent-encodes. */
function plain(message) {
  try {
    return decodeURIComponent(message ?? "");
  } catch {
    return message;
  }
}
