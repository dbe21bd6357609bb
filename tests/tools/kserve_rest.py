"""Calls a server through KServe's REST client, unmodified.

usage: kserve_rest.py URL, such as http://127.0.0.1:8002; the server has the bundled model.

Needs `pip install 'kserve==0.21.*'`, which brings some 300 MB of dependencies: the tests do without.
"""

import asyncio
import base64
import pathlib
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

URL = sys.argv[1]
MODEL = "resnet18-demo"
PHOTO = (pathlib.Path(__file__).resolve().parents[1] / "data/cat.jpg").read_bytes()


async def main():
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=30))
    assert await client.is_server_live(URL) and await client.is_server_ready(URL)
    assert await client.is_model_ready(URL, MODEL) and not await client.is_model_ready(URL, "other")

    file = InferInput("images", [1], "BYTES", [base64.b64encode(PHOTO).decode()])
    in_json = await client.infer(URL, InferRequest(MODEL, [file]), model_name=MODEL)
    file = InferInput("images", [1], "BYTES")
    file.set_data_from_numpy(np.array([PHOTO], dtype=np.object_), binary_data=True)
    in_binary = await client.infer(URL, InferRequest(MODEL, [file]), model_name=MODEL)

    rows = [answer.outputs[0].as_numpy() for answer in (in_json, in_binary)]
    assert in_json.outputs[0].name == "probabilities" and rows[0].shape == (1, 106), in_json.to_dict()
    assert np.allclose(*rows, atol=1e-3) and abs(rows[0].sum() - 1) < 1e-3
    print("KServe's REST client: ok, class", rows[0].argmax(), "with", rows[0].max())


asyncio.run(main())
