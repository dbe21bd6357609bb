"""Compares the file of `resnet18 quantize` with the one of ONNX Runtime's static quantizer, both run by OpenVINO.

    python3 -m venv /tmp/int8 && /tmp/int8/bin/pip install openvino onnxruntime onnx numpy pillow
    /tmp/int8/bin/python benches/int8.py --calibration DIR --photos DIR

Both calibrate with the same number of photos of the first folder and are measured in turns, so that whatever else the machine
does slows both. The photos of the second folder lie in folders named after the model's classes. Prints one line of JSON.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import tempfile
import time

import numpy
import onnx
import openvino
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
MEAN = numpy.array([0.485, 0.456, 0.406], numpy.float32)
STD = numpy.array([0.229, 0.224, 0.225], numpy.float32)


def crop(path):
    """The uint8 crop of 224 by 224 that the bundled model sees."""
    image = Image.open(path).convert("RGB")
    width, height = image.size
    size = (256, 256 * height // width) if width <= height else (256 * width // height, 256)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (round((side - 224) / 2) for side in size)
    return numpy.asarray(image.crop((left, top, left + 224, top + 224)), numpy.uint8)


def normalized(pixels):
    return ((pixels.astype(numpy.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)[None]


def images(folder):
    return sorted(path for path in pathlib.Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))


def widened(model):
    """The model without the casts of stored halves, which ONNX Runtime's quantizer does not look through."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Cast" and node.input[0] in stored]:
        half = stored[node.input[0]]
        values = onnx.numpy_helper.to_array(half).astype(numpy.float32)
        model.graph.initializer.remove(half)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, node.output[0]))
        model.graph.node.remove(node)
    return model


class Photos(CalibrationDataReader):
    def __init__(self, paths):
        self.crops = (crop(path) for path in paths)

    def get_next(self):
        pixels = next(self.crops, None)
        return None if pixels is None else {"input": normalized(pixels)}


class Network:
    """A network in OpenVINO on one thread."""

    def __init__(self, path):
        core = openvino.Core()
        model = core.read_model(path)
        model.reshape({0: [1, *list(model.inputs[0].partial_shape)[1:]]})
        settings = {
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
        }
        self.compiled = core.compile_model(model, "CPU", settings)
        self.request = self.compiled.create_infer_request()
        self.pixels = self.compiled.inputs[0].element_type == openvino.Type.u8
        self.seconds = []

    def input(self, pixels):
        return pixels[None] if self.pixels else normalized(pixels)

    def logits(self, pixels):
        return self.request.infer([self.input(pixels)])[0][0].copy()

    def time(self, pixels, runs=5):
        """The CPU seconds of a run, which others on the machine disturb less than seconds by the clock."""
        batch = self.input(pixels)
        before = time.process_time()
        for _ in range(runs):
            self.request.infer([batch])
        self.seconds.append((time.process_time() - before) / runs)

    def executed(self):
        """How many layers of each kind were executed in which precision."""
        kinds = collections.Counter()
        for node in self.compiled.get_runtime_model().get_ops():
            info = {key: node.rt_info[key] for key in ("layerType", "runtimePrecision")}
            info = {key: value if isinstance(value, str) else value.astype(str) for key, value in info.items()}
            if info["layerType"] in ("Convolution", "FullyConnected"):
                kinds[f"{info['layerType']} {info['runtimePrecision']}"] += 1
        return dict(kinds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", required=True, help="a folder of photos to calibrate with")
    parser.add_argument("--photos", required=True, help="a folder of labelled photos to measure with")
    parser.add_argument("--program", default=ROOT / "target/release/resnet18", help="the program that quantizes")
    parser.add_argument("--count", type=int, default=100, help="how many photos calibrate")
    parser.add_argument("--seconds", type=float, default=20, help="how long each network is timed")
    arguments = parser.parse_args()

    bundled = ROOT / "models/resnet18-demo.onnx"
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        ours = folder / "ours.onnx"
        command = [arguments.program, "quantize", bundled, "--calibration", arguments.calibration, "--output", ours]
        subprocess.run([*command, "--calibration-photos", str(arguments.count)], check=True, stdout=subprocess.DEVNULL)

        model = widened(onnx.load(bundled))
        manifest = next(entry.value for entry in model.metadata_props if entry.key == "resnet18.manifest")
        labels = json.loads(manifest)["labels"]
        onnx.save(model, folder / "float.onnx")
        quant_pre_process(folder / "float.onnx", folder / "prepared.onnx", skip_symbolic_shape=True)
        photos = images(arguments.calibration)
        quantize_static(
            folder / "prepared.onnx",
            folder / "onnxruntime.onnx",
            Photos(photos[:: max(1, len(photos) // arguments.count)][: arguments.count]),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        networks = {name: Network(folder / f"{name}.onnx") for name in ("float", "onnxruntime", "ours")}

    photos = images(arguments.photos)
    crops = [crop(path) for path in photos]
    classes = numpy.array([labels.index(path.parent.name) for path in photos])
    answers = {name: numpy.array([network.logits(pixels).argmax() for pixels in crops]) for name, network in networks.items()}
    end = time.monotonic() + arguments.seconds * len(networks)
    while time.monotonic() < end:
        for network in networks.values():
            network.time(crops[0])

    report = {}
    for name, network in networks.items():
        report[name] = {
            "images_per_cpu_second": round(1 / numpy.percentile(network.seconds, 10), 1),
            "top1": round(float((answers[name] == classes).mean()), 4),
            "agreement": round(float((answers[name] == answers["float"]).mean()), 4),
            "executed": network.executed(),
        }
    ratio = report["ours"]["images_per_cpu_second"] / report["onnxruntime"]["images_per_cpu_second"]
    print(json.dumps({"photos": len(photos), **report, "speed_ratio": round(ratio, 3)}))


if __name__ == "__main__":
    main()
