"""Tests of REST through real clients: tritonclient.http, requests and urllib, beside gRPC.

Arguments: HOST:PORT of gRPC, HOST:PORT of HTTP, a folder of photos.
"""

import base64
import json
import pathlib
import struct
import sys
import urllib.error
import urllib.request

import numpy as np
import requests
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

GRPC, HTTP = sys.argv[1:3]
PHOTOS = sorted(path for path in pathlib.Path(sys.argv[3]).iterdir() if path.is_file())
CAT = pathlib.Path(__file__).resolve().parents[1] / "data/cat.jpg"
URL = f"http://{HTTP}"
MODEL, TENSOR = "resnet18-demo", "resnet18-demo_tensor"
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)

client = triton.InferenceServerClient(HTTP)
by_grpc = triton_grpc.InferenceServerClient(GRPC)
session = requests.Session()


def tensor(module, values, datatype, **how):
    images = module.InferInput("images", values.shape, datatype)
    images.set_data_from_numpy(values, **how)
    return [images]


def file(module, photo):
    return tensor(module, np.array([photo], dtype=np.object_), "BYTES")


def output(name, **how):
    return [triton.InferRequestedOutput(name, **how)]


def fails(status, word, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except InferenceServerException as error:
        assert word in error.message(), error
        assert error.status() in (None, str(status)), error.status()
        return
    raise AssertionError(f"the call succeeded; {word} was expected")


def crops(n):
    return np.random.default_rng(7).integers(0, 256, (n, 224, 224, 3), dtype=np.uint8)


def test_health_and_metadata():
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(MODEL) and client.is_model_ready(TENSOR)
    assert not client.is_model_ready("other") and not client.is_model_ready(MODEL, "777777")
    assert session.get(f"{URL}/v2/health/ready").json() == {"ready": True}
    assert session.get(f"{URL}/v2/health/live").json() == {"live": True}
    server = client.get_server_metadata()
    assert server["name"] == "resnet18" and "binary_tensor_data" in server["extensions"], server
    metadata = client.get_model_metadata(TENSOR)
    same = by_grpc.get_model_metadata(TENSOR, as_json=True)
    assert metadata["versions"] == same["versions"] and metadata["name"] == TENSOR, metadata
    assert metadata["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 224, 224, 3]}], metadata
    assert "probabilities" in [output["name"] for output in metadata["outputs"]]
    [version] = metadata["versions"]
    assert client.get_model_metadata(TENSOR, version) == metadata
    config = client.get_model_config(TENSOR)
    assert config["max_batch_size"] == 64 and config["input"][0]["dims"] == [224, 224, 3], config
    assert config["input"][0]["data_type"] == "TYPE_UINT8" and config["parameters"]["std"]["string_value"], config
    statistics = client.get_inference_statistics(MODEL)["model_stats"]
    assert statistics[0]["name"] == MODEL and isinstance(statistics[0]["inference_count"], int), statistics
    assert len(client.get_inference_statistics()["model_stats"]) == 2
    index = client.get_model_repository_index()
    assert [(model["name"], model["state"]) for model in index] == [(MODEL, "READY"), (TENSOR, "READY")], index
    for ask in (client.get_model_metadata, client.get_model_config, client.get_inference_statistics):
        fails(404, MODEL, ask, "other")
    fails(501, "--model-control", client.load_model, MODEL)
    fails(501, "--model-control", client.unload_model, MODEL)


def test_photos_have_the_same_answers_by_every_protocol():
    for photo in PHOTOS:
        content = photo.read_bytes()
        grpc_ = by_grpc.infer(MODEL, file(triton_grpc, content),
                              outputs=[triton_grpc.InferRequestedOutput("probabilities")])
        expected = grpc_.as_numpy("probabilities")
        for binary in (True, False):
            result = client.infer(MODEL, file(triton, content), outputs=output("probabilities", binary_data=binary),
                                  request_id=photo.name)
            got = result.as_numpy("probabilities")
            assert got.dtype == np.float32 and (got == expected).all(), photo
            assert result.get_response()["id"] == photo.name
        classes = session.post(f"{URL}/v1/classify?top_k=1000", data=content).json()["classifications"]
        by_id = {c["class_id"]: np.float32(c["probability"]) for c in classes}
        assert [by_id[i] for i in range(len(by_id))] == list(expected[0]), photo


def test_every_way_to_send_a_tensor():
    pixels = crops(2)
    expected = client.infer(TENSOR, tensor(triton, pixels, "UINT8"), outputs=output("logits")).as_numpy("logits")
    assert expected.shape == (2, 106)
    normal = ((pixels.astype(np.float32) / 255 - MEAN) / STD).transpose(0, 3, 1, 2).copy()
    for inputs in (tensor(triton, pixels, "UINT8", binary_data=False), tensor(triton, normal, "FP32"),
                   tensor(triton, normal, "FP32", binary_data=False)):
        got = client.infer(TENSOR, inputs, outputs=output("logits", binary_data=False)).as_numpy("logits")
        assert (got == expected).all(), np.abs(got - expected).max()
    for algorithm in ("gzip", "deflate"):
        compressed = client.infer(TENSOR, tensor(triton, pixels, "UINT8"), outputs=output("logits"),
                                  request_compression_algorithm=algorithm)
        assert (compressed.as_numpy("logits") == expected).all()
    # Without outputs Triton's client asks for all in binary form, and another client for none.
    everything = client.infer(TENSOR, tensor(triton, pixels, "UINT8"))
    assert everything.as_numpy("probabilities") is not None


def test_json_without_a_client_library():
    photo = base64.b64encode(CAT.read_bytes()).decode()
    body = {"id": "42", "inputs": [{"name": "images", "datatype": "BYTES", "shape": [1], "data": [photo]}],
            "outputs": [{"name": "probabilities", "parameters": {"classification": 2}}]}
    request = urllib.request.Request(f"{URL}/v2/models/{MODEL}/infer", json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        answer = json.load(answer)
    [tensor] = answer["outputs"]
    assert answer["id"] == "42" and answer["model_name"] == MODEL, answer
    assert tensor["datatype"] == "BYTES" and tensor["shape"] == [1, 2], tensor
    assert tensor["data"][0].endswith(":cat"), tensor
    version = answer["model_version"]
    again = session.post(f"{URL}/v2/models/{MODEL}/versions/{version}/infer", json=body).json()
    assert again == answer


def test_classes_and_parameters():
    photo = CAT.read_bytes()
    for binary in (True, False):
        wanted = output("probabilities", class_count=3, binary_data=binary)
        text = client.infer(MODEL, file(triton, photo), outputs=wanted, priority=1, timeout=20_000_000)
        first = text.as_numpy("probabilities").reshape(-1)[0]
        first = first.decode() if isinstance(first, bytes) else first
        assert first.endswith(":cat"), first
    infer = lambda **named: client.infer(MODEL, file(triton, photo), **named)
    fails(504, "passed", infer, timeout=1)
    fails(400, "softmax", infer, outputs=output("softmax"))
    fails(404, "other", client.infer, "other", file(triton, photo))
    fails(404, "version", infer, model_version="777777")
    fails(400, "image", client.infer, MODEL, file(triton, b"no image"))


def test_tensors_that_do_not_fit():
    fails(400, "shape", client.infer, TENSOR, tensor(triton, crops(1)[:, :, 1:], "UINT8"))
    fails(400, "UINT8", client.infer, TENSOR, tensor(triton, crops(1).astype(np.int64), "INT64"))
    post = lambda body, **headers: session.post(f"{URL}/v2/models/{MODEL}/infer", data=body, headers=headers)
    header = json.dumps({"inputs": [{"name": "images", "datatype": "BYTES", "shape": [1],
                                     "parameters": {"binary_data_size": 8}}]}).encode()
    name = "inference-header-content-length"
    for body, length in ((header, len(header)), (header + b"x" * 9, len(header)), (header, 10**6), (header, 3),
                         (b"", 0), (header + struct.pack("<I", 10) + b"abcd", len(header))):
        answer = post(body, **{name: str(length)})
        assert answer.status_code == 400 and answer.json()["error"], answer.text
    answer = post(b"x" * (17 << 20))
    assert answer.status_code == 413 and "--max-message-mib" in answer.json()["error"], answer.text
    answer = session.get(f"{URL}/v2/models/{MODEL}/generate")
    assert answer.status_code == 404 and answer.json()["error"], answer.text


def test_forms_and_generators():
    photo = CAT.read_bytes()
    expected = session.post(f"{URL}/v1/classify", data=photo).json()["classifications"]
    assert expected[0]["label"] == "cat"
    form = session.post(f"{URL}/v1/classify", files={"image": ("cat.jpg", photo, "image/jpeg")}, data={"top_k": "5"})
    assert form.json()["classifications"] == expected, form.text
    pieces = (photo[i:i + 1000] for i in range(0, len(photo), 1000))
    chunked = session.post(f"{URL}/v1/classify", data=pieces, headers={"content-type": "image/jpeg"})
    assert chunked.json()["classifications"] == expected, chunked.text
    document = {"top_k": 5, "image": {"encoded": base64.b64encode(photo).decode()}}
    assert session.post(f"{URL}/v1/classify", json=document).json()["classifications"] == expected
    gray = {"format": "PIXEL_FORMAT_GRAY8", "width": 2, "height": 2, "data": "AAAAAA=="}
    answer = session.post(f"{URL}/v1/classify", json={"image": {"raw": gray}})
    assert answer.status_code == 200, answer.text
    try:
        urllib.request.urlopen(f"{URL}/v1/classify", b"no image")
    except urllib.error.HTTPError as error:
        assert error.code == 400 and json.load(error)["status"] == "INVALID_ARGUMENT"
    else:
        raise AssertionError("an image that is none was classified")


for name, test in list(globals().items()):
    if name.startswith("test_"):
        test()
        print(name, "ok")
