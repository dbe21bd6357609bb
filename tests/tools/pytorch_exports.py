"""Writes a ResNet18 in the ways that PyTorch and ONNX Runtime's tools write models, and serves each with every engine.

    python tests/tools/pytorch_exports.py FOLDER PROGRAM

Needs torch, onnx, onnxscript, onnxruntime and sympy; PyTorch is too large for the tests' own environment. PROGRAM is
`resnet18`. The probabilities of one picture are compared with PyTorch's.
"""

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import torch
from torch import nn

CLASSES = 10


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """torchvision's resnet18, layer by layer."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        layers, inputs = [], 64
        for outputs, stride in [(64, 1), (128, 2), (256, 2), (512, 2)]:
            layers.append(nn.Sequential(Block(inputs, outputs, stride), Block(outputs, outputs, 1)))
            inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, CLASSES)

    def forward(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layers(x)), 1))


def network():
    torch.manual_seed(18)
    model = ResNet18()
    model.fc.weight.data *= 40  # Without training, all classes would be about as probable.
    # Running statistics and weights as after training, so that batch normalization does something.
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(8, 3, 224, 224) * 4 - 2)
    return model.eval()


# What rounding to 16 and 8 bits may change.
TOLERANCES = {"fp16": 0.02, "fp16_inputs": 0.02, "int8": 0.2}


def compare(folder, program, expected):
    """Serves each file with each engine; ends with status 1 if one can't be served or answers differently."""
    ports = "127.0.0.1:18351", "127.0.0.1:18352"
    failed = False
    for path in sorted(folder.glob("*/model.onnx")):
        for engine in ["openvino", "onnxruntime", "embedded"]:
            flags = ["--engine", engine, "--precision", "auto" if path.parent.name == "int8" else "fp32"]
            server = subprocess.Popen(
                [program, "serve", "--model", path, "--resize", "224", "--grpc", ports[0], "--http", ports[1], *flags],
                stderr=subprocess.PIPE,
                text=True,
            )
            off = None
            for _ in range(600):
                if server.poll() is not None:
                    break
                try:
                    urllib.request.urlopen(f"http://{ports[1]}/readyz").close()
                except OSError:
                    time.sleep(0.2)
                    continue
                client = [program, "classify", "--server", f"http://{ports[0]}", "--json", "--top-k", str(CLASSES)]
                answer = subprocess.run([*client, folder / "crop.ppm"], capture_output=True, text=True, check=True)
                classes = json.loads(answer.stdout.splitlines()[0])["classifications"]
                off = max(abs(expected[int(found["label"])] - found["probability"]) for found in classes)
                break
            server.terminate()
            log = server.communicate()[1]
            if off is None:
                reason = log.strip().splitlines()[-1:]
                print(f"{path.parent.name:12} {engine:12} not served: {reason}")
                failed |= engine == "onnxruntime"
            else:
                print(f"{path.parent.name:12} {engine:12} off by {off:.5f}")
                failed |= off > TOLERANCES.get(path.parent.name, 0.001)
    sys.exit(1 if failed else 0)


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    model = network()
    crop = np.random.default_rng(3).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    (folder / "crop.ppm").write_bytes(b"P6 224 224 255\n" + crop.tobytes())
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = torch.tensor(((crop / 255 - mean) / std).transpose(2, 0, 1)[None], dtype=torch.float32)
    with torch.no_grad():
        logits = model(pixels)[0].tolist()
    expected = torch.softmax(torch.tensor(logits), 0).tolist()

    def path(name):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "model.labels.txt").write_text("".join(f"{label}\n" for label in range(CLASSES)))
        return folder / name / "model.onnx"

    example = (torch.zeros(1, 3, 224, 224),)
    versions = [f"torch {torch.__version__}"]
    print("default")
    torch.onnx.export(model, example, path("default"))
    print("any_batch")
    batch = torch.export.Dim("batch")
    torch.onnx.export(model, example, path("any_batch"), dynamic_shapes=({0: batch},))
    print("one_file")
    torch.onnx.export(model, example, path("one_file"), external_data=False)
    print("torchscript")
    try:
        torch.onnx.export(model, example, path("torchscript"), dynamo=False, opset_version=11)
    except Exception as error:  # It has been announced to go.
        print(f"  not written: {error}")

    import onnx
    from onnxruntime.transformers import float16

    versions.append(f"onnx {onnx.__version__}")
    print("fp16")
    half = float16.convert_float_to_float16(onnx.load(path("one_file")), keep_io_types=True)
    onnx.save(half, path("fp16"))
    print("fp16_inputs")
    half = float16.convert_float_to_float16(onnx.load(path("one_file")), keep_io_types=False)
    onnx.save(half, path("fp16_inputs"))

    print("int8")
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):
        def __init__(self):
            self.left = [{"x": pixels.numpy()}, {"x": pixels.numpy()[:, :, ::-1].copy()}]

        def get_next(self):
            return self.left.pop() if self.left else None

    name = onnx.load(path("one_file")).graph.input[0].name
    reader = Reader()
    reader.left = [{name: value["x"]} for value in reader.left]
    q.quantize_static(path("one_file"), path("int8"), reader, quant_format=q.QuantFormat.QOperator)
    import onnxruntime

    versions.append(f"onnxruntime {onnxruntime.__version__}")
    print(", ".join(versions))
    print("expected:", " ".join(f"{probability:.3f}" for probability in expected))
    compare(folder, sys.argv[2], expected)


if __name__ == "__main__":
    main()
