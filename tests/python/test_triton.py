"""Tests of the server through Triton's client: synchronous, asyncio and streaming.

Arguments: HOST:PORT, a folder of photos.
"""

import asyncio
import pathlib
import queue
import struct
import sys
import tempfile
import time

import grpc
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_tools import protoc
from PIL import Image
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException, deserialize_bytes_tensor

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data"
ADDRESS = sys.argv[1]
PHOTOS = sorted(path for path in pathlib.Path(sys.argv[2]).iterdir() if path.is_file())
SMALL = sorted(PHOTOS, key=lambda path: path.stat().st_size)[:6]
MODEL, TENSOR = "resnet18-demo", "resnet18-demo_tensor"
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)

stubs = tempfile.mkdtemp()
assert protoc.main(["protoc", f"-I{ROOT}/proto", f"-I{pathlib.Path(protoc.__file__).parent}/_proto",
                    f"--python_out={stubs}", f"--grpc_python_out={stubs}", "resnet18/v1/classifier.proto"]) == 0
sys.path.insert(0, stubs)
from resnet18.v1 import classifier_pb2, classifier_pb2_grpc  # noqa: E402

client = triton.InferenceServerClient(ADDRESS)
classifier = classifier_pb2_grpc.ClassifierStub(grpc.insecure_channel(ADDRESS))


def files(*contents):
    """Encoded images as the input of the model that takes files."""
    return tensor(np.array(contents, dtype=np.object_), "BYTES")


def tensor(values, datatype):
    """An array as the input of the model that takes tensors."""
    images = triton.InferInput("images", values.shape, datatype)
    images.set_data_from_numpy(values)
    return [images]


def top(k, output="probabilities"):
    return [triton.InferRequestedOutput(output, class_count=k)]


def fails(*words, model=MODEL, inputs=None, **arguments):
    try:
        client.infer(model, files(b"x") if inputs is None else inputs, **arguments)
    except InferenceServerException as error:
        assert all(word in str(error) for word in words), error
        return error
    raise AssertionError(f"the call succeeded; an error with {words} was expected")


def raw_call(method, request):
    """Makes a call without Triton's client, which would not send such a request."""
    channel = grpc.insecure_channel(ADDRESS)
    call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}",
                               request_serializer=lambda message: message.SerializeToString(),
                               response_deserializer=service_pb2.ModelInferResponse.FromString)
    return call(request, timeout=10)


def crops(n):
    """`n` images of random pixels, of the model's input size."""
    return np.random.default_rng(7).integers(0, 256, (n, 224, 224, 3), dtype=np.uint8)


def normalized(pixels):
    """Pixels as the network's own input: normalized, channels first."""
    return ((pixels.astype(np.float32) / 255 - MEAN) / STD).transpose(0, 3, 1, 2).copy()


def same_as_classify(photo, text):
    """Checks that the entries `value:index:label` are the answer of Classify for this photo."""
    image = classifier_pb2.Image(encoded=photo.read_bytes())
    answer = classifier.Classify(classifier_pb2.ClassifyRequest(image=image, top_k=len(text)))
    parts = [entry.decode().split(":", 2) for entry in text]
    assert [int(index) for _, index, _ in parts] == [c.class_id for c in answer.classifications], photo
    assert [label for *_, label in parts] == [c.label for c in answer.classifications], photo
    # Batches of different sizes may round differently.
    assert np.allclose([float(value) for value, *_ in parts], [c.probability for c in answer.classifications], atol=1e-3)


def test_ready():
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(MODEL) and client.is_model_ready(TENSOR)
    assert not client.is_model_ready("other") and not client.is_model_ready(MODEL, "7")
    assert client.is_model_ready(MODEL, "1") and client.is_model_ready(MODEL, "")


def test_metadata_and_config():
    server = client.get_server_metadata()
    assert server.name == "resnet18" and {"classification", "statistics"} <= set(server.extensions), server
    metadata = client.get_model_metadata(TENSOR)
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("images", "UINT8", [-1, 224, 224, 3])]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [("probabilities", "FP32", [-1, 106])]
    [version] = metadata.versions
    [listed] = classifier.ListModels(classifier_pb2.ListModelsRequest()).models
    assert int(version) == int(listed.version, 16) and len(listed.version) == 12, (version, listed.version)
    assert client.is_model_ready(TENSOR, version) and client.is_model_ready(TENSOR, listed.version)
    metadata = client.get_model_metadata(MODEL, version)
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("images", "BYTES", [-1, 1])]
    config = client.get_model_config(TENSOR, "1").config
    assert [(o.name, o.data_type, list(o.dims)) for o in config.output] == [
        ("probabilities", model_config_pb2.TYPE_FP32, [106])]
    assert config.parameters["model_hash"].string_value == listed.version, config
    assert config.max_batch_size == 64 and config.dynamic_batching.priority_levels == 3, config
    assert list(config.input[0].dims) == [224, 224, 3]
    assert config.input[0].data_type == model_config_pb2.TYPE_UINT8
    assert config.input[0].format == model_config_pb2.ModelInput.FORMAT_NHWC
    assert config.parameters["mean"].string_value == "0.485,0.456,0.406", config
    encoded = client.get_model_config(MODEL, as_json=True)["config"]["input"][0]
    assert encoded["data_type"] == "TYPE_STRING" and encoded["dims"] == ["1"], encoded
    for ask in (client.get_model_metadata, client.get_model_config):
        try:
            ask("other")
        except InferenceServerException as error:
            assert error.status() == "StatusCode.NOT_FOUND" and MODEL in error.message(), error
        else:
            raise AssertionError("metadata of a model that does not exist")


def test_index():
    models = client.get_model_repository_index().models
    assert [(model.name, model.state) for model in models] == [(MODEL, "READY"), (TENSOR, "READY")], models
    assert all(int(model.version) > 1 and not model.reason for model in models), models


def test_photos_get_the_same_answers_as_from_classify():
    for photo in PHOTOS:
        result = client.infer(MODEL, files(photo.read_bytes()), outputs=top(5), request_id=photo.name)
        assert result.get_response().id == photo.name
        same_as_classify(photo, result.as_numpy("probabilities")[0])


def test_several_photos_in_one_request():
    some = SMALL[:4]
    result = client.infer(MODEL, files(*(photo.read_bytes() for photo in some)), outputs=top(3))
    text = result.as_numpy("probabilities")
    assert text.shape == (4, 3)
    for photo, row in zip(some, text):
        same_as_classify(photo, row)


def test_outputs():
    photo = (DATA / "cat.jpg").read_bytes()
    default = client.infer(MODEL, files(photo), model_version="1")
    response = default.get_response()
    assert [output.name for output in response.outputs] == ["probabilities"]
    assert int(response.model_version) == int(response.parameters["model_hash"].string_param, 16)
    both = client.infer(MODEL, files(photo), outputs=[triton.InferRequestedOutput(name) for name in ("logits", "probabilities")])
    assert np.allclose(default.as_numpy("probabilities"), both.as_numpy("probabilities"), atol=1e-3)
    logits, probabilities = both.as_numpy("logits"), both.as_numpy("probabilities")
    assert logits.shape == probabilities.shape == (1, 106) and logits.dtype == np.float32
    softmax = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert np.allclose(softmax, probabilities, atol=1e-5)
    one = client.infer(MODEL, files(photo), outputs=[triton.InferRequestedOutput("logits")])
    assert one.as_numpy("probabilities") is None and one.as_numpy("logits").shape == (1, 106)
    value, index, label = client.infer(MODEL, files(photo), outputs=top(1, "logits")).as_numpy("logits")[0, 0].decode().split(":")
    assert int(index) == logits.argmax() and label == "cat" and abs(float(value) - logits.max()) < 0.05


def test_tensors():
    pixels = crops(3)
    answers = [client.infer(TENSOR, inputs, outputs=[triton.InferRequestedOutput("logits")]).as_numpy("logits")
               for inputs in (tensor(pixels, "UINT8"), tensor(normalized(pixels), "FP32"))]
    assert answers[0].shape == (3, 106)
    assert np.allclose(*answers, atol=0.05), np.abs(answers[0] - answers[1]).max()
    request = service_pb2.ModelInferRequest(model_name=TENSOR)
    contents = service_pb2.InferTensorContents(uint_contents=pixels[:1].flatten().tolist())
    request.inputs.add(name="images", datatype="UINT8", shape=[1, 224, 224, 3], contents=contents)
    request.outputs.add(name="logits")
    typed = np.frombuffer(raw_call("ModelInfer", request).raw_output_contents[0], np.float32)
    assert np.allclose(typed, answers[0][0], atol=0.05)


def test_errors():
    photo = (DATA / "cat.jpg").read_bytes()
    assert fails("no model", MODEL, model="other").status() == "StatusCode.NOT_FOUND"
    fails("version", model_version="7")
    assert fails("JPEG", inputs=files(b"nonsense")).status() == "StatusCode.INVALID_ARGUMENT"
    fails("image 2 of 3", "JPEG", inputs=files(photo, b"nonsense", photo))
    fails("UINT8", "BYTES [N, 1]", inputs=tensor(crops(1), "UINT8"))
    fails("UINT8 [N, 224, 224, 3]", model=TENSOR, inputs=tensor(crops(1)[:, :100], "UINT8"))
    fails("1 to 64", inputs=files(*[b"x"] * 65))
    fails("softmax", "`probabilities` and `embedding`", outputs=[triton.InferRequestedOutput("softmax")])
    wrong = triton.InferInput("input", [1], "BYTES")
    wrong.set_data_from_numpy(np.array([photo], dtype=np.object_))
    fails("`input`", "`images`", inputs=[wrong])
    pixels_as_floats = crops(1).astype(np.float32).transpose(0, 3, 1, 2).copy()
    fails("is out of range", "mean", model=TENSOR, inputs=tensor(pixels_as_floats, "FP32"))
    not_numbers = np.full((1, 3, 224, 224), np.nan, np.float32)
    fails("NaN", model=TENSOR, inputs=tensor(not_numbers, "FP32"))
    fails("16859", "at most 16777216", "--max-message-mib", model=TENSOR, inputs=tensor(normalized(crops(28)), "FP32"))
    shared = triton.InferRequestedOutput("logits")
    shared.set_shared_memory("region", 424)
    fails("shared memory", inputs=files(photo), outputs=[shared])


def test_hostile_messages():
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    request.inputs.add(name="images", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"x")
    request.raw_input_contents.append(struct.pack("<I", 1) + b"x")
    flood = service_pb2.ModelInferRequest(model_name=MODEL, inputs=[{}] * 1_000_000)
    for message, word in ((request, "one of the two"), (flood, "more than 1000")):
        try:
            raw_call("ModelInfer", message)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and word in error.details(), error
        else:
            raise AssertionError(f"the call succeeded; an error with {word!r} was expected")


def test_timeout_and_priority():
    inputs = tensor(crops(32), "UINT8")
    before = client.get_inference_statistics(TENSOR).model_stats[0]
    error = fails("", model=TENSOR, inputs=inputs, timeout=1000)
    assert error.status() == "StatusCode.DEADLINE_EXCEEDED", error
    # All images that no worker had begun are cancelled.
    client.infer(TENSOR, tensor(crops(1), "UINT8"), priority=1)
    after = client.get_inference_statistics(TENSOR).model_stats[0]
    assert after.execution_count - before.execution_count < 10, (before, after)
    assert after.inference_stats.fail.count - before.inference_stats.fail.count == 1
    for priority in (1, 2, 3, 1000):
        client.infer(TENSOR, tensor(crops(1), "UINT8"), priority=priority, timeout=10_000_000)
    client.infer(TENSOR, tensor(crops(1), "UINT8"), headers={"x-priority": "3"})
    error = fails("x-priority", model=TENSOR, inputs=tensor(crops(1), "UINT8"), headers={"x-priority": "urgent"})
    assert error.status() == "StatusCode.INVALID_ARGUMENT", error


def test_statistics():
    read = lambda: {model.name: model for model in client.get_inference_statistics().model_stats}
    before = read()
    assert set(before) == {MODEL, TENSOR}
    client.infer(MODEL, files((DATA / "cat.jpg").read_bytes()))
    client.infer(TENSOR, tensor(crops(2), "UINT8"))
    fails("JPEG", inputs=files(b"nonsense"))
    after = read()
    grown = {name: after[name].inference_count - before[name].inference_count for name in after}
    assert grown == {MODEL: 1, TENSOR: 2}, grown
    stats = after[MODEL].inference_stats
    assert stats.success.count == before[MODEL].inference_stats.success.count + 1
    assert stats.fail.count == before[MODEL].inference_stats.fail.count + 1
    assert stats.success.ns > stats.compute_infer.ns > 0 and stats.compute_input.ns > 0
    assert abs(after[MODEL].last_inference / 1000 - time.time()) < 60
    for name, images in ((MODEL, 1), (TENSOR, 2)):
        calls = {batch.batch_size: batch.compute_infer for batch in after[name].batch_stats}
        assert sum(calls[size].count for size in calls) == after[name].execution_count
        assert 1 <= after[name].execution_count - before[name].execution_count <= images
        assert all(calls[size].ns > 0 for size in calls), calls
        earlier = {batch.batch_size: batch.compute_infer.count for batch in before[name].batch_stats}
        assert sum(size * (calls[size].count - earlier.get(size, 0)) for size in calls) == images
    [named] = client.get_inference_statistics(MODEL, "1").model_stats
    assert named.version == "1" and named.inference_count == after[MODEL].inference_count, named
    # What came by another protocol, or under the other name, is not counted.
    image = classifier_pb2.Image(encoded=(DATA / "cat.jpg").read_bytes())
    for _ in range(3):
        classifier.Classify(classifier_pb2.ClassifyRequest(image=image))
    client.infer(MODEL, files((DATA / "cat.jpg").read_bytes()))
    last = read()
    assert last[MODEL].execution_count == after[MODEL].execution_count + 1
    assert last[TENSOR].execution_count == after[TENSOR].execution_count


def test_what_triton_s_image_clients_ask():
    # image_client.py and grpc_image_client.py take a model if it has one FP32 vector as its output.
    for name, dimensions in ((TENSOR, 4), (MODEL, 2)):
        metadata = client.get_model_metadata(name, "1")
        config = client.get_model_config(name, "1").config
        [output], [wanted] = metadata.outputs, metadata.inputs
        assert output.datatype == "FP32" and sum(size > 1 for size in output.shape[1:]) == 1, output
        assert config.max_batch_size > 0 and len(config.input) == 1 and len(wanted.shape) == dimensions, config
    # They stretch the whole photo to the network's input and send it with the version of `-x 1`.
    photo = Image.open(DATA / "photos/cat.jpg").convert("RGB").resize((224, 224), Image.BILINEAR)
    pixels = np.array(photo)[np.newaxis]
    request = service_pb2.ModelInferRequest(model_name=TENSOR, model_version="1", raw_input_contents=[pixels.tobytes()])
    request.inputs.add(name="images", datatype="UINT8", shape=pixels.shape)
    request.outputs.add(name="probabilities").parameters["classification"].int64_param = 3
    response = raw_call("ModelInfer", request)
    assert len(response.outputs) == len(response.raw_output_contents) == 1
    texts = deserialize_bytes_tensor(response.raw_output_contents[0]).reshape(response.outputs[0].shape)
    value, index, label = texts[0, 0].decode().split(":")
    assert texts.shape == (1, 3) and label == "cat" and 0 < float(value) <= 1 and int(index) >= 0, texts


def test_methods_that_are_not_offered_say_what_to_do():
    asks = {"shared memory": [client.get_system_shared_memory_status, client.get_cuda_shared_memory_status,
                              client.unregister_system_shared_memory, client.unregister_cuda_shared_memory,
                              lambda: client.register_system_shared_memory("a", "/a", 1),
                              lambda: client.register_cuda_shared_memory("a", b"eA==", 0, 1)],
            "--otlp-endpoint": [client.get_trace_settings, client.update_trace_settings],
            "--log": [client.get_log_settings, lambda: client.update_log_settings({"log_info": True})],
            "--model-control explicit": [lambda: client.load_model(MODEL), lambda: client.unload_model(MODEL)]}
    for words, methods in asks.items():
        for method in methods:
            try:
                method()
            except InferenceServerException as error:
                assert error.status() == "StatusCode.UNIMPLEMENTED" and words in error.message(), error
            else:
                raise AssertionError(f"a method about {words} is offered")


def test_health_of_all_services():
    channel = grpc.insecure_channel(ADDRESS)
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    answer = GetMessageClass(pool.FindMessageTypeByName("grpc.health.v1.HealthListResponse"))
    ask = channel.unary_unary("/grpc.health.v1.Health/List", response_deserializer=answer.FromString)
    statuses = ask(b"", timeout=10).statuses
    assert set(statuses) == {"", "resnet18.v1.Classifier", "inference.GRPCInferenceService",
                             f"resnet18.v1.Classifier/{MODEL}"}, statuses
    serving = pool.FindEnumTypeByName("grpc.health.v1.HealthCheckResponse.ServingStatus").values_by_name["SERVING"]
    assert all(entry.status == serving.number for entry in statuses.values()), statuses


def test_compression():
    pixels = np.zeros((1, 224, 224, 3), np.uint8)
    answers = [client.infer(TENSOR, tensor(pixels, "UINT8"), compression_algorithm=how).as_numpy("probabilities")
               for how in (None, "gzip", "deflate")]
    assert np.allclose(answers[0], answers[1], atol=1e-3) and np.allclose(answers[0], answers[2], atol=1e-3)


def test_asyncio():
    async def run():
        async with triton_aio.InferenceServerClient(ADDRESS) as client:
            assert await client.is_server_ready()
            ask = lambda photo: client.infer(MODEL, files(photo.read_bytes()), outputs=top(2), request_id=photo.name)
            results = await asyncio.gather(*map(ask, SMALL))

            async def requests():
                for i in range(20):
                    inputs = files(b"nonsense") if i == 7 else tensor(crops(1), "UINT8")
                    yield {"model_name": MODEL if i == 7 else TENSOR, "inputs": inputs, "request_id": str(i)}

            ids, errors = [], []
            async for result, error in client.stream_infer(requests()):
                errors.append(str(error)) if error else ids.append(int(result.get_response().id))
            return results, ids, errors

    results, ids, errors = asyncio.run(run())
    for photo, result in zip(SMALL, results):
        assert result.get_response().id == photo.name
        same_as_classify(photo, result.as_numpy("probabilities")[0])
    assert ids == [i for i in range(20) if i != 7], ids
    [error] = errors
    assert "INVALID_ARGUMENT" in error and "JPEG" in error, error


def test_a_stream_of_1000_requests_keeps_ids_and_order():
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    tiny = (DATA / "tiny_33x47.png").read_bytes()
    pixels = crops(1)
    for i in range(1000):
        even = i % 2 == 0
        client.async_stream_infer(MODEL if even else TENSOR, files(tiny) if even else tensor(pixels, "UINT8"),
                                  request_id=f"request {i}", outputs=top(1))
    logits = {}
    for i in range(1000):
        result, error = answers.get(timeout=60)
        assert error is None, error
        response = result.get_response()
        assert response.id == f"request {i}", (response.id, i)
        assert response.model_name == (MODEL if i % 2 == 0 else TENSOR)
        assert response.parameters["triton_final_response"].bool_param
        logits.setdefault(i % 2, set()).add(result.as_numpy("probabilities")[0, 0].split(b":")[1])
    client.stop_stream()
    assert all(len(classes) == 1 for classes in logits.values()), logits
    assert answers.empty()


def test_a_stream_goes_on_after_errors():
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    photo = (DATA / "cat.jpg").read_bytes()
    requests = [("1", MODEL, files(photo), {}), ("2", "other", files(photo), {}), ("3", MODEL, files(b"nonsense"), {}),
                ("4", MODEL, files(photo), {"timeout": 1}), ("5", MODEL, files(photo), {})]
    for request_id, model, inputs, arguments in requests:
        client.async_stream_infer(model, inputs, request_id=request_id, **arguments)
    results = [answers.get(timeout=10) for _ in requests]
    client.stop_stream()
    assert [result and result.get_response().id for result, _ in results] == ["1", None, None, None, "5"], results
    words = ["NOT_FOUND: there is no model", "INVALID_ARGUMENT: ", "DEADLINE_EXCEEDED: "]
    assert all(word in str(error) for word, (_, error) in zip(words, results[1:4])), results


def as_regions(boxes):
    regions = triton.InferInput("regions", boxes.shape, "FP32")
    regions.set_data_from_numpy(boxes)
    return regions


def test_regions_and_embeddings():
    photo = (DATA / "cat.jpg").read_bytes()
    boxes = np.array([[[0, 0, 1, 1], [0.25, 0.25, 0.5, 0.5]]], np.float32)
    regions = as_regions(boxes)
    wanted = [triton.InferRequestedOutput(name) for name in ("probabilities", "embedding")]
    parameters = {"region_unit": "fractions", "normalize_embedding": True}
    parts = client.infer(MODEL, files(photo) + [regions], outputs=wanted, parameters=parameters)
    whole = client.infer(MODEL, files(photo), outputs=wanted, parameters={"normalize_embedding": True})
    assert parts.as_numpy("probabilities").shape == (1, 2, 106)
    assert whole.as_numpy("embedding").shape == (1, 512)
    assert np.allclose(np.linalg.norm(parts.as_numpy("embedding"), axis=-1), 1, atol=1e-3)
    for output in ("probabilities", "embedding"):
        assert np.allclose(parts.as_numpy(output)[:, 0], whole.as_numpy(output), atol=1e-3)

    allowed = client.infer(MODEL, files(photo), outputs=top(3), parameters={"allow_labels": "cat\ndog"})
    row = [entry.decode() for entry in allowed.as_numpy("probabilities")[0]]
    assert row[0].endswith(":cat") and row[1].endswith(":dog") and row[2] == "", row
    fails("`allow_labels`", "neither a label", outputs=top(3), parameters={"allow_labels": "unicorn"})
    fails("FP32 [N, R, 4]", inputs=files(photo) + [as_regions(boxes[0])])


for name, test in list(globals().items()):
    if name.startswith("test_"):
        started = time.monotonic()
        test()
        print(f"{name} {time.monotonic() - started:.1f} s ok")
# Left to the end of the interpreter, closing sometimes waits for a thread that is gone.
client.close()
