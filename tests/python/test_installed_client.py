"""Tests of the installed client, `clients/python`: images of all kinds, video, errors and retries.

Arguments: HOST:PORT of a server, and of one whose queue has a single place.
"""

import pathlib
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
from PIL import Image
from resnet18 import Classifier, raw, region

DATA = pathlib.Path(__file__).resolve().parents[1] / "data"
CAT = DATA / "cat.jpg"


def rejects(call, *words):
    """Makes a call that must fail with a ValueError that has these words."""
    try:
        call()
    except ValueError as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError("it was accepted")


with Classifier(sys.argv[1]) as classifier:
    answers = classifier.classify(CAT, top_k=3)
    assert [c.label for c in answers][0] == "cat" and len(answers) == 3, answers
    for image in [str(CAT), CAT.read_bytes(), bytearray(CAT.read_bytes())]:
        assert classifier.classify(image, top_k=3) == answers

    pixels = np.asarray(Image.open(CAT).convert("RGB"))
    for image in [raw(pixels, "RGB8"), raw(np.ascontiguousarray(pixels[:, :, ::-1]))]:
        best = classifier.classify(image)[0]
        assert best.label == "cat" and abs(best.probability - answers[0].probability) < 0.02, best
    gray = raw(np.asarray(Image.open(CAT).convert("L")), "GRAY8")
    assert len(classifier.classify(gray, top_k=1)) == 1
    rejects(lambda: raw(pixels, "NV21"), "NV21", "RGB8")
    rejects(lambda: raw(pixels, "RGBA8"), "(height, width, 4)")
    rejects(lambda: raw(pixels.astype(np.float32)), "bytes of the shape")

    allowed = classifier.classify(CAT, allow=["sunflower", "cat"], deny=["sunflower"])
    assert allowed == answers[:1], allowed
    assert all(c.label != "cat" for c in classifier.classify(CAT, deny=["cat"]))

    whole, part = classifier.classify_regions(
        CAT, [region(0, 0, 1, 1, fractions=True), (10, 20, 100, 100)], top_k=3
    )
    assert whole == answers and len(part) == 3, (whole, part)
    assert classifier.classify_regions(CAT, []) == []

    good, bad, also = classifier.classify_batch([CAT, b"no image", CAT.read_bytes()], top_k=3)
    assert list(good.result.classifications) == list(also.result.classifications) == answers
    assert bad.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0] and "JPEG" in bad.error.message

    embedding = np.array(classifier.embed(CAT))
    assert embedding.shape == (512,) and abs(np.linalg.norm(embedding) - 1) < 1e-3
    assert np.linalg.norm(classifier.embed(CAT, normalize=False)) > 1.1

    frames = list(classifier.stream([CAT], regions=[(10, 20, 100, 100)], want_embedding=True, top_k=3))
    assert list(frames[0].result.regions[0].classifications) == part
    assert len(frames[0].result.regions[0].embedding.values) == 512

    frames = list(classifier.stream([CAT, b"no image", CAT], smoothing=0.5))
    assert [frame.frame_id for frame in frames] == [0, 1, 2]
    assert frames[1].HasField("error") and frames[2].result.classifications[0].label == "cat"
    rejects(lambda: classifier.stream([CAT], policy="some"), "every", "latest")

    assert [model.name for model in classifier.models()] == ["resnet18-demo"]
    try:
        classifier.classify(b"no image")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and "JPEG" in error.details()
    else:
        raise AssertionError("no image was classified")

# Most of these calls are rejected at first.
with Classifier(sys.argv[2], timeout=60) as classifier, ThreadPoolExecutor(8) as threads:
    answers = list(threads.map(lambda _: classifier.classify(CAT, top_k=1)[0].label, range(18)))
    assert answers == ["cat"] * 18, answers

print("passed")
