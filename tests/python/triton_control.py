"""Loads and unloads models through Triton's client. The server serves the model `cats`.

Arguments: HOST:PORT, the server's folder of models, which also has `birds.onnx` that came later.
"""

import pathlib
import sys

import numpy as np
import tritonclient.grpc as triton

client = triton.InferenceServerClient(sys.argv[1])
folder = pathlib.Path(sys.argv[2])
images = triton.InferInput("images", [1, 224, 224, 3], "UINT8")
images.set_data_from_numpy(np.zeros((1, 224, 224, 3), np.uint8))


def fails(code, words, method, *arguments, **named):
    try:
        method(*arguments, **named)
    except triton.InferenceServerException as error:
        assert error.status() == f"StatusCode.{code}" and words in error.message(), error
    else:
        raise AssertionError(f"the call succeeded; {code} was expected")


def index():
    return {model.name: (model.state, model.reason) for model in client.get_model_repository_index().models}


ready = ("READY", "")
assert index() == {"cats": ready, "cats_tensor": ready}, index()
assert not client.is_model_ready("birds"), "neither its file nor SIGHUP loads a model"
fails("NOT_FOUND", "no model", client.infer, "birds_tensor", [images])

client.load_model("birds")
assert index() == {name: ready for name in ("cats", "birds", "cats_tensor", "birds_tensor")}, index()
client.infer("birds_tensor", [images])
version = client.get_model_metadata("cats").versions
client.load_model("cats_tensor")
assert client.get_model_metadata("cats").versions == version, "the same content is the same version"

client.unload_model("cats_tensor")
assert not client.is_model_ready("cats") and client.is_model_ready("birds")
unloaded = ("UNAVAILABLE", "unloaded")
assert index()["cats"] == index()["cats_tensor"] == unloaded, index()
fails("NOT_FOUND", "unloaded; RepositoryModelLoad", client.infer, "cats_tensor", [images])
client.unload_model("cats")
fails("NOT_FOUND", "no model \"dogs\"", client.unload_model, "dogs")
fails("NOT_FOUND", "no file \"dogs.onnx\"", client.load_model, "dogs")
fails("NOT_FOUND", "no file", client.load_model, "../models/cats")
fails("INVALID_ARGUMENT", "`config`", client.load_model, "cats", config="{}")

whole = (folder / "cats.onnx").read_bytes()
(folder / "cats.onnx").write_bytes(b"no model")
fails("FAILED_PRECONDITION", "could not be loaded", client.load_model, "cats")
state, reason = index()["cats"]
assert state == "UNAVAILABLE" and reason not in ("", "unloaded"), (state, reason)
fails("FAILED_PRECONDITION", "could not be loaded", client.infer, "cats_tensor", [images])

(folder / "birds.onnx").unlink()
fails("NOT_FOUND", "no file", client.load_model, "birds")
client.infer("birds_tensor", [images])
client.unload_model("birds")
client.unload_model("cats")
assert not client.is_server_ready()
fails("NOT_FOUND", "unloaded", client.infer, "birds_tensor", [images])

(folder / "cats.onnx").write_bytes(whole)
client.load_model("cats")
assert client.is_server_ready() and index()["cats"] == ready, index()
client.infer("cats_tensor", [images], model_version="1")
print("ok")
client.close()
