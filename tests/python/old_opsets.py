#!/usr/bin/env python3
"""Writes small classifiers of opsets 7 to 12, each with one operator that changed since, and what
they answer by NumPy. Where onnxruntime is installed, it has to agree.

usage: old_opsets.py FOLDER

FOLDER gets NAME.onnx for each model, the image `x` (float32 [1, 3, 16, 16]) and `expected.json`: the
eight logits by name.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

try:
    import onnxruntime
except ImportError:
    onnxruntime = None

CLASSES = 8
SHAPE = (1, 3, 16, 16)

rng = np.random.default_rng(7)
f32 = np.float32
node = helper.make_node


def ints(*values):
    return np.array(values, np.int64)


def weights(*shape):
    return rng.normal(0, 0.5, shape).astype(f32)


def softmax(x, axes):
    e = np.exp(x - x.max(axes, keepdims=True))
    return e / e.sum(axes, keepdims=True)


def normalized(x, scale, bias, mean, variance):
    return (x - mean) / np.sqrt(variance + 1e-5) * scale + bias


def per_channel(values):
    return values.reshape(1, -1, 1, 1)


def windows(x, size, stride, reduce, pad=0, fill=0.0, ceil=False):
    """Each window of a pooling; those that the image does not fill are cut off."""
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=fill)
    side = padded.shape[2]
    free = side - size
    count = (-(-free // stride) if ceil else free // stride) + 1
    out = np.empty((*x.shape[:2], count, count), f32)
    for i in range(count):
        for j in range(count):
            part = padded[:, :, i * stride:i * stride + size, j * stride:j * stride + size]
            out[:, :, i, j] = reduce(part, (2, 3))
    return out


def linear_up(x):
    """Twice the size: each second pixel is one of the image, the others are between two."""
    for axis in (2, 3):
        after = np.concatenate([x.take(range(1, x.shape[axis]), axis), x.take([-1], axis)], axis)
        both = np.stack([x, (x + after) / 2], axis + 1)
        shape = list(x.shape)
        shape[axis] *= 2
        x = both.reshape(shape)
    return x


def cases():
    """(name, opsets, nodes from x to y, stored tensors, what they compute)"""
    old, new = range(7, 11), range(11, 13)
    every = range(7, 13)

    yield "dropout", range(7, 12), [node("Dropout", ["x"], ["y", "mask"], ratio=0.4)], {}, lambda x: x
    yield ("dropout_input", [12], [node("Dropout", ["x", "ratio"], ["y"])],
           {"ratio": np.array(0.4, f32)}, lambda x: x)

    scale, bias, mean = weights(3), weights(3), weights(3)
    variance = np.abs(weights(3)) + 0.5
    stored = {"scale": scale, "bias": bias, "mean": mean, "variance": variance}
    statistics = ["x", "scale", "bias", "mean", "variance"]
    yield ("batch_normalization", every, [node("BatchNormalization", statistics, ["y"])], stored,
           lambda x: normalized(x, *(per_channel(v) for v in (scale, bias, mean, variance))))
    yield ("batch_normalization_spatial", [7, 8],
           [node("BatchNormalization", statistics, ["y"], spatial=1)], stored,
           lambda x: normalized(x, *(per_channel(v) for v in (scale, bias, mean, variance))))
    places = {name: np.broadcast_to(v.reshape(3, 1, 1), SHAPE[1:]) + weights(*SHAPE[1:]) / 10
              for name, v in stored.items()}
    yield ("batch_normalization_places", [7, 8],
           [node("BatchNormalization", statistics, ["y"], spatial=0)], places,
           lambda x: normalized(x, *places.values()))

    yield "clip", old, [node("Clip", ["x"], ["y"], min=-0.5, max=0.75)], {}, lambda x: x.clip(-0.5, 0.75)
    yield "clip_above", old, [node("Clip", ["x"], ["y"], max=0.25)], {}, lambda x: np.minimum(x, 0.25)
    yield ("clip_inputs", new, [node("Clip", ["x", "low", "high"], ["y"])],
           {"low": np.array(-0.5, f32), "high": np.array(0.75, f32)}, lambda x: x.clip(-0.5, 0.75))

    pads = [0, 0, 1, 2, 0, 0, 3, 0]
    widths = ((0, 0), (0, 0), (1, 3), (2, 0))
    yield ("pad", old, [node("Pad", ["x"], ["y"], pads=pads, value=0.5)], {},
           lambda x: np.pad(x, widths, constant_values=0.5))
    yield ("pad_zero", old, [node("Pad", ["x"], ["y"], pads=pads)], {}, lambda x: np.pad(x, widths))
    yield ("pad_reflect", old, [node("Pad", ["x"], ["y"], mode="reflect", pads=pads)], {},
           lambda x: np.pad(x, widths, "reflect"))
    yield ("pad_inputs", new, [node("Pad", ["x", "pads", "value"], ["y"])],
           {"pads": ints(*pads), "value": np.array(0.5, f32)},
           lambda x: np.pad(x, widths, constant_values=0.5))

    yield ("slice", range(7, 10), [node("Slice", ["x"], ["y"], starts=[1, -9], ends=[2**31 - 1, -1], axes=[2, 3])],
           {}, lambda x: x[:, :, 1:, -9:-1])
    yield ("slice_without_axes", range(7, 10), [node("Slice", ["x"], ["y"], starts=[0, 1], ends=[1, 3])],
           {}, lambda x: x[:, 1:3])
    yield ("slice_inputs", range(10, 13), [node("Slice", ["x", "starts", "ends", "axes", "steps"], ["y"])],
           {"starts": ints(1, 14), "ends": ints(15, 0), "axes": ints(2, 3), "steps": ints(2, -3)},
           lambda x: x[:, :, 1:15:2, 14:0:-3])

    yield ("squeeze", every, [node("Squeeze", ["x"], ["h"], axes=[0]), node("Unsqueeze", ["h"], ["y"], axes=[0, 2])],
           {}, lambda x: x[:, :, None])
    yield ("squeeze_from_the_end", new,
           [node("Unsqueeze", ["x"], ["h"], axes=[-1]), node("Squeeze", ["h"], ["y"], axes=[-1])], {}, lambda x: x)

    for name, f in [
        ("Softmax", lambda x, axes: softmax(x, axes)),
        ("LogSoftmax", lambda x, axes: np.log(softmax(x, axes))),
    ]:
        yield f"{name}_default", every, [node(name, ["x"], ["y"])], {}, lambda x, f=f: f(x, (1, 2, 3)) * 20
        yield f"{name}_2", every, [node(name, ["x"], ["y"], axis=2)], {}, lambda x, f=f: f(x, (2, 3)) * 20
        yield f"{name}_3", every, [node(name, ["x"], ["y"], axis=3)], {}, lambda x, f=f: f(x, (3,)) * 20
        yield f"{name}_last", new, [node(name, ["x"], ["y"], axis=-1)], {}, lambda x, f=f: f(x, (3,)) * 20
        yield (f"{name}_pooled", every, [node("GlobalAveragePool", ["x"], ["h"]), node(name, ["h"], ["y"])], {},
               lambda x, f=f: f(x.mean((2, 3), keepdims=True), (1,)) * 20)
    yield ("Hardmax", every, [node("Hardmax", ["x"], ["y"], axis=3)], {},
           lambda x: (x == x.max(3, keepdims=True)).astype(f32))

    yield "reduce_sum", every, [node("ReduceSum", ["x"], ["y"], axes=[2], keepdims=0)], {}, lambda x: x.sum(2)
    yield "reduce_sum_kept", every, [node("ReduceSum", ["x"], ["y"], axes=[1, 3])], {}, lambda x: x.sum((1, 3), keepdims=True)
    yield "reduce_mean", every, [node("ReduceMean", ["x"], ["y"], axes=[3], keepdims=0)], {}, lambda x: x.mean(3)
    yield "reduce_max", every, [node("ReduceMax", ["x"], ["y"], axes=[1])], {}, lambda x: x.max(1, keepdims=True)
    yield "reduce_l2", every, [node("ReduceL2", ["x"], ["y"], axes=[3])], {}, lambda x: np.sqrt((x * x).sum(3, keepdims=True))

    twice, half = [1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 0.5, 0.5]
    both = [1.0, 1.0, 2.0, 0.5]
    up = lambda x: x.repeat(2, 2).repeat(2, 3)
    yield "upsample", [7, 8], [node("Upsample", ["x"], ["y"], mode="nearest", scales=twice)], {}, up
    yield "upsample_linear", [7, 8], [node("Upsample", ["x"], ["y"], mode="linear", scales=twice)], {}, linear_up
    for name, values, mode, f in [
        ("nearest", twice, "nearest", up),
        ("smaller", half, "nearest", lambda x: x[:, :, ::2, ::2]),
        ("both", both, "nearest", lambda x: x.repeat(2, 2)[:, :, :, ::2]),
        ("linear", twice, "linear", linear_up),
    ]:
        scales = {"scales": np.array(values, f32)}
        if name in ("nearest", "linear"):
            yield f"upsample_input_{name}", [9], [node("Upsample", ["x", "scales"], ["y"], mode=mode)], scales, f
        yield f"resize_{name}", [10], [node("Resize", ["x", "scales"], ["y"], mode=mode)], scales, f
    yield ("resize_with_roi", new,
           [node("Resize", ["x", "roi", "scales"], ["y"], mode="nearest", nearest_mode="floor",
                 coordinate_transformation_mode="asymmetric")],
           {"roi": np.zeros(0, f32), "scales": np.array(twice, f32)}, up)

    w, c = weights(768, 5), weights(5)
    flat = node("Flatten", ["x"], ["h"])
    product = lambda x: x.reshape(1, -1) @ w
    yield ("gemm", every, [flat, node("Gemm", ["h", "w", "c"], ["y"])], {"w": w, "c": c}, lambda x: product(x) + c)
    yield ("gemm_number", every, [flat, node("Gemm", ["h", "w", "c"], ["y"], beta=0.5)],
           {"w": w, "c": np.array([3.0], f32)}, lambda x: product(x) + 1.5)
    yield "gemm_plain", new, [flat, node("Gemm", ["h", "w"], ["y"])], {"w": w}, product

    best = lambda x: -np.sort(-x, 3)[:, :, :, :4]
    yield "top_k", range(7, 10), [node("TopK", ["x"], ["y", "at"], k=4)], {}, best
    yield "top_k_input", range(10, 13), [node("TopK", ["x", "k"], ["y", "at"])], {"k": ints(4)}, best

    yield ("split", every,
           [node("Split", ["x"], ["a", "b"], axis=2, split=[5, 11]), node("Concat", ["b", "a"], ["y"], axis=2)], {},
           lambda x: np.concatenate([x[:, :, 5:], x[:, :, :5]], 2))
    yield ("split_equally", every,
           [node("Split", ["x"], ["a", "b"], axis=3), node("Sub", ["a", "b"], ["y"])], {},
           lambda x: x[..., :8] - x[..., 8:])

    yield ("cast", every, [node("Mul", ["x", "ten"], ["h"]), node("Cast", ["h"], ["i"], to=TensorProto.INT32),
                           node("Cast", ["i"], ["y"], to=TensorProto.FLOAT)],
           {"ten": np.array([10.0], f32)}, lambda x: np.trunc(x * f32(10)))
    yield "flatten", every, [node("Flatten", ["x"], ["h"], axis=3), node("Reshape", ["h", "shape"], ["y"])], {"shape": ints(1, -1)}, lambda x: x
    yield "flatten_from_the_end", new, [node("Flatten", ["x"], ["h"], axis=-1), node("Reshape", ["h", "shape"], ["y"])], {"shape": ints(1, -1)}, lambda x: x

    yield ("max_pool", every, [node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)], {},
           lambda x: windows(x, 3, 2, np.max, 1, -np.inf))
    yield ("max_pool_ceil", range(10, 13),
           [node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)], {},
           lambda x: windows(x, 3, 2, np.max, ceil=True))
    yield ("average_pool", every,
           [node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, count_include_pad=1)], {},
           lambda x: windows(x, 3, 2, np.mean, 1))
    yield ("average_pool_same", every,
           [node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER")], {},
           lambda x: windows(x, 2, 2, np.mean))

    at = rng.integers(0, 16, (1, 3, 2, 16))
    while (at[:, :, 0] == at[:, :, 1]).any():
        at = rng.integers(0, 16, (1, 3, 2, 16))
    updates = weights(1, 3, 2, 16)

    def scattered(x):
        x = x.copy()
        np.put_along_axis(x, at, updates, 2)
        return x

    stored = {"at": at.astype(np.int64), "updates": updates}
    yield "scatter", [9, 10], [node("Scatter", ["x", "at", "updates"], ["y"], axis=2)], stored, scattered
    yield "scatter_elements", new, [node("ScatterElements", ["x", "at", "updates"], ["y"], axis=2)], stored, scattered

    yield ("constant", every, [node("Constant", [], ["c"], value=numpy_helper.from_array(weights(1, 3, 1, 1) * 0 + 2)),
                               node("Mul", ["x", "c"], ["y"])], {}, lambda x: x * 2)
    yield ("constant_number", [12], [node("Constant", [], ["c"], value_float=2.0), node("Mul", ["x", "c"], ["y"])], {},
           lambda x: x * 2)
    yield ("constant_of_shape", range(9, 13),
           [node("Shape", ["x"], ["s"]),
            node("ConstantOfShape", ["s"], ["c"], value=numpy_helper.from_array(np.array([0.5], f32))),
            node("Add", ["x", "c"], ["y"])], {}, lambda x: x + f32(0.5))
    yield ("where", range(9, 13), [node("Greater", ["x", "zero"], ["g"]), node("Where", ["g", "x", "zero"], ["y"])],
           {"zero": np.array([0.0], f32)}, lambda x: np.maximum(x, 0))
    yield ("equal", every, [node("Cast", ["x"], ["i"], to=TensorProto.INT32), node("Equal", ["i", "one"], ["q"]),
                            node("Cast", ["q"], ["y"], to=TensorProto.FLOAT)],
           {"one": np.array([1], np.int32)}, lambda x: (np.trunc(x) == 1).astype(f32))
    slope = np.abs(weights(3, 1, 1))
    yield "prelu", every, [node("PRelu", ["x", "slope"], ["y"])], {"slope": slope}, lambda x: np.where(x < 0, x * slope, x)
    row = weights(16)
    yield "add_broadcast", every, [node("Add", ["x", "row"], ["y"])], {"row": row}, lambda x: x + row
    yield "sum", every, [node("Sum", ["x", "x", "x"], ["y"])], {}, lambda x: x * 3
    yield "max_broadcast", range(8, 13), [node("Max", ["x", "row"], ["y"])], {"row": row}, lambda x: np.maximum(x, row)
    yield "pow", every, [node("Pow", ["x", "two"], ["y"])], {"two": np.array([2.0], f32)}, lambda x: x * x

    def instance(x):
        mean, variance = x.mean((2, 3), keepdims=True), x.var((2, 3), keepdims=True)
        return normalized(x, per_channel(scale), per_channel(bias), mean, variance)

    yield ("instance_normalization", every, [node("InstanceNormalization", ["x", "scale", "bias"], ["y"])],
           {"scale": scale, "bias": bias}, instance)

    quantized = lambda x: ((np.rint(x / f32(0.05)) + 100).clip(0, 255) - 100) * f32(0.05)
    yield ("quantize", range(10, 13),
           [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])],
           {"s": np.array(0.05, f32), "z": np.array(100, np.uint8)}, quantized)
    yield "tile", every, [node("Tile", ["x", "n"], ["y"])], {"n": ints(1, 1, 2, 1)}, lambda x: np.tile(x, (1, 1, 2, 1))
    yield "expand", range(8, 13), [node("Expand", ["v", "s"], ["e"]), node("Mul", ["x", "e"], ["y"])], {"v": slope, "s": ints(1, 3, 16, 16)}, lambda x: x * slope
    yield "gather", every, [node("Gather", ["x", "at"], ["y"], axis=3)], {"at": ints(3, 0, 9)}, lambda x: x[..., [3, 0, 9]]
    yield "transpose", every, [node("Transpose", ["x"], ["y"], perm=[0, 2, 3, 1])], {}, lambda x: x.transpose(0, 2, 3, 1)
    yield "lrn", every, [node("LRN", ["x"], ["y"], size=3, alpha=0.3, beta=0.75)], {}, lrn
    yield ("depth_to_space", every, [node("SpaceToDepth", ["x"], ["h"], blocksize=2), node("DepthToSpace", ["h"], ["y"], blocksize=2)],
           {}, lambda x: x)

    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    then = helper.make_graph([node("Squeeze", ["x"], ["then"], axes=[0])], "then", [], [value("then")])
    other = helper.make_graph([node("Softmax", ["x"], ["soft"]), node("Squeeze", ["soft"], ["other"], axes=[0])], "other", [], [value("other")])
    for name, condition, f in [("then", True, lambda x: x[0]), ("else", False, lambda x: softmax(x, (1, 2, 3))[0] * 20)]:
        yield (f"if_{name}", new, [node("If", ["condition"], ["h"], then_branch=then, else_branch=other),
                                   node("Unsqueeze", ["h"], ["y"], axes=[0])],
               {"condition": np.array(condition)}, lambda x, f=f: f(x)[None])


def lrn(x):
    square = np.pad(x * x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    total = square[:, :-2] + square[:, 1:-1] + square[:, 2:]
    return x / (1 + f32(0.3) / 3 * total) ** f32(0.75)


def model(opset, nodes, stored, y, factor):
    """The nodes, flattened, with a linear layer behind them."""
    size = y.size
    layer, bias = weights(size, CLASSES) / np.sqrt(size).astype(f32) * 2, weights(CLASSES)
    stored = {**stored, "out_shape": ints(1, size), "layer": layer * f32(factor), "layer_bias": bias}
    nodes = [*nodes, node("Reshape", ["y", "out_shape"], ["flat"]),
             node("Gemm", ["flat", "layer", "layer_bias"], ["logits"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)]
    if opset < 9:
        # As IR version 3 asks for.
        inputs += [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
                   for name, value in stored.items()]
    tensors = [numpy_helper.from_array(np.array(value, order="C"), name) for name, value in stored.items()]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, CLASSES))
    graph = helper.make_graph(nodes, "classifier", inputs, [output], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 3 if opset < 9 else 4 if opset < 10 else 5 if opset < 11 else 6 if opset < 12 else 7
    return made, y.reshape(1, -1).astype(f32) @ layer + bias


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    x = rng.normal(0, 1, SHAPE).astype(f32)
    (folder / "x").write_bytes(x.tobytes())
    expected = {}
    for name, opsets, nodes, stored, f in cases():
        # What a Softmax gives is small, so the layer behind it is scaled instead.
        factor = 20 if "oftmax" in name or name == "if_else" else 1
        for opset in opsets:
            made, logits = model(opset, nodes, stored, f(x), factor)
            onnx.checker.check_model(made)
            key = f"{name.lower()}_{opset}"
            onnx.save(made, folder / f"{key}.onnx")
            expected[key] = [float(value) for value in logits[0]]
            if onnxruntime:
                session = onnxruntime.InferenceSession(folder / f"{key}.onnx")
                theirs = session.run(["logits"], {"x": x})[0]
                if not np.allclose(theirs, logits, atol=1e-3, rtol=1e-3):
                    sys.exit(f"{key}: onnxruntime says {theirs}, not {logits}")
    (folder / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if onnxruntime:
        onnxruntime.set_default_logger_severity(4)
    main(Path(sys.argv[1]))
