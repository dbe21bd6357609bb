// Calls the server with gRPC's library for Node and with Connect's, over gRPC and gRPC-Web.
//
// Arguments: the proto file, its descriptor set, a photo of a cat, the address of the gRPC port or `unix:PATH`, and,
// unless that is a socket, the URL of the HTTP port. Prints a line with " ok" at its end for each client.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createFileRegistry, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const [proto, descriptors, photo, address, http] = process.argv.slice(2);
const encoded = readFileSync(photo);
const FRAMES = 5;

async function grpcJs() {
  const definition = protoLoader.loadSync(proto, { defaults: true });
  const { Classifier } = grpc.loadPackageDefinition(definition).resnet18.v1;
  const client = new Classifier(address, grpc.credentials.createInsecure());
  const deadline = () => ({ deadline: Date.now() + 30_000 });

  const answer = await new Promise((resolve, reject) => {
    const done = (error, response) => (error ? reject(error) : resolve(response));
    client.classify({ image: { encoded }, topK: 2 }, new grpc.Metadata(), deadline(), done);
  });
  assert.equal(answer.classifications.length, 2);
  assert.equal(answer.classifications[0].label, "cat");

  const error = await new Promise((resolve) => {
    client.classify({ image: { encoded: Buffer.from("no image") } }, deadline(), (failure) => resolve(failure));
  });
  assert.equal(error.code, grpc.status.INVALID_ARGUMENT);

  const stream = client.streamClassify(deadline());
  stream.write({ config: { topK: 1, policy: "FRAME_POLICY_EVERY" } });
  for (let index = 0; index < FRAMES; index += 1) {
    stream.write({ frame: { image: { encoded } } });
  }
  stream.end();
  let answered = 0;
  for await (const response of stream) {
    assert.equal(response.result.classifications[0].label, "cat");
    answered += 1;
  }
  assert.equal(answered, FRAMES);
  client.close();
}

async function connect(transport, { streams }) {
  const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(descriptors)));
  const client = createClient(registry.getService("resnet18.v1.Classifier"), transport);
  const options = { timeoutMs: 30_000 };
  const image = { source: { case: "encoded", value: encoded } };

  const answer = await client.classify({ image, topK: 2 }, options);
  assert.equal(answer.classifications.length, 2);
  assert.equal(answer.classifications[0].label, "cat");

  const wrong = { source: { case: "encoded", value: new TextEncoder().encode("no image") } };
  await assert.rejects(client.classify({ image: wrong }, options), (error) => {
    return error instanceof ConnectError && error.code === Code.InvalidArgument;
  });

  if (streams) {
    async function* requests() {
      yield { message: { case: "config", value: { topK: 1, policy: 1 } } };
      for (let index = 0; index < FRAMES; index += 1) {
        yield { message: { case: "frame", value: { image } } };
      }
    }
    let answered = 0;
    for await (const response of client.streamClassify(requests(), options)) {
      assert.equal(response.outcome.value.classifications[0].label, "cat");
      answered += 1;
    }
    assert.equal(answered, FRAMES);
  }
}

await grpcJs();
console.log("grpc-js ok");
if (http) {
  await connect(createGrpcTransport({ baseUrl: `http://${address}` }), { streams: true });
  console.log("connect over gRPC ok");
  await connect(createGrpcWebTransport({ baseUrl: http, httpVersion: "1.1" }), { streams: false });
  console.log("connect over gRPC-Web ok");
}
