// Calls the Classifier service over gRPC-Web, on the port that served the page.

import { classifyRequest, classifyResponse, listModelsRequest, listModelsResponse } from "./protobuf.js";

/** The status codes of gRPC that the page treats differently. */
export const Code = { invalid: 3, deadline: 4, exhausted: 8, outOfRange: 11, unavailable: 14, unauthenticated: 16 };

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
export const classify = async (model, file) => classifyResponse(await call("Classify", classifyRequest(model, file)));

/** Lists the server's models. */
export const listModels = async () => listModelsResponse(await call("ListModels", listModelsRequest()));

async function call(method, message) {
  const body = new Uint8Array(PREFIX + message.length);
  new DataView(body.buffer).setUint32(1, message.length);
  body.set(message, PREFIX);
  const headers = {
    "content-type": "application/grpc-web+proto",
    "grpc-timeout": `${TIMEOUT}m`,
    ...(token.get() && { authorization: `Bearer ${token.get()}` }),
  };
  const url = `/resnet18.v1.Classifier/${method}`;
  let response, bytes;
  try {
    // The server enforces the deadline; this covers a server that does not answer at all.
    const signal = AbortSignal.timeout(TIMEOUT + 2000);
    response = await fetch(url, { method: "POST", headers, body, signal, cache: "no-store", credentials: "omit" });
    bytes = new Uint8Array(await response.arrayBuffer());
  } catch {
    throw new CallError(Code.unavailable, "the server does not answer");
  }
  return answer(response, bytes);
}

/** The message of a response. The status is in the headers if there is no body, else in the last frame. */
function answer(response, bytes) {
  if (!response.ok) {
    const busy = response.status === 503;
    throw new CallError(busy ? Code.unavailable : 2, new TextDecoder().decode(bytes).trim() || `HTTP ${response.status}`);
  }
  let message = null;
  let status = (name) => response.headers.get(name);
  for (let at = 0; at + PREFIX <= bytes.length; ) {
    const length = new DataView(bytes.buffer).getUint32(at + 1);
    const frame = bytes.subarray(at + PREFIX, at + PREFIX + length);
    if (bytes[at] & TRAILERS) status = trailers(frame);
    else message = frame;
    at += PREFIX + length;
  }
  const code = Number(status("grpc-status") ?? 2);
  if (code !== 0) throw new CallError(code, plain(status("grpc-message")) || `the call failed with code ${code}`);
  if (!message) throw new CallError(2, "the answer is empty");
  return message;
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
