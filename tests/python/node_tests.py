"""Writes ONNX's own tests of the operators that classifiers use, for the Rust test of the engines.

Argument: a new folder. For each test it gets NAME.onnx and NAME.data, which is a ModelProto too: its initializers are
the inputs `in_0`, `in_1`, … under the model's names in their order, and the expected outputs `out_0`, …; metadata holds
the operator and the tolerances; `steps` is how far 8-bit integers may be off.

A model is fed all inputs of its test, but for operators with weights, sizes or axes only the first: the file stores
the others, as those of networks do.
"""

import pathlib
import sys
import warnings

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases

# Text, sequences, training, detection, audio, recurrent networks and random numbers: no classifier of images uses them.
LEFT_OUT = set("""
    Adagrad Adam Momentum Gradient SoftmaxCrossEntropyLoss NegativeLogLikelihoodLoss Bernoulli RandomNormal RandomUniform
    RandomNormalLike RandomUniformLike Multinomial StringSplit StringNormalizer StringConcat RegexFullMatch TfIdfVectorizer
    LabelEncoder TreeEnsemble ArrayFeatureExtractor Binarizer ImageDecoder SequenceMap SequenceInsert SplitToSequence
    SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceLength ConcatFromSequence Optional OptionalHasElement
    OptionalGetElement Loop Scan If GRU LSTM RNN DFT STFT BlackmanWindow HammingWindow HannWindow MelWeightMatrix
    NonMaxSuppression RoiAlign MaxUnpool Unique Compress Scatter Upsample Attention LinearAttention FlexAttention
    CausalConvWithState TensorScatter DeformConv Col2Im Det BitShift BitCast CumProd ReverseSequence RotaryEmbedding
    AffineGrid GridSample MeanVarianceNormalization ScatterElements ScatterND
""".split())
# Operators whose other inputs are stored in the files of networks.
STORED = set("""
    BatchNormalization Clip Conv ConvInteger ConvTranspose DequantizeLinear Expand Gather GatherElements GatherND Gemm
    GroupNormalization InstanceNormalization LayerNormalization MatMul MatMulInteger OneHot PRelu Pad QLinearConv
    QLinearMatMul QuantizeLinear RMSNormalization ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum ReduceSumSquare Reshape Resize Slice Split Squeeze Tile TopK Trilu Unsqueeze CumSum
    CenterCropPad Dropout
""".split())
# Operators of whose outputs networks use only the first; the others are for training, or for what undoes a pooling.
FIRST_OUTPUT = {"BatchNormalization", "LayerNormalization", "MaxPool"}
# What the engines' interfaces can be fed; 16-bit floats are widened, as the server widens them.
FED = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.INT8,
       TensorProto.BOOL}
WIDENED = {TensorProto.FLOAT16, TensorProto.BFLOAT16}


def elem(value):
    return value.type.tensor_type.elem_type


def prepare(model, inputs, outputs, stored):
    """The model and its data, or None where a tensor has no numbers. Types that engines aren't fed are cast at the edges."""
    graph = model.graph
    if any(not value.type.HasField("tensor_type") or elem(value) == TensorProto.STRING
           for value in [*graph.input, *graph.output]):
        return None
    before, after, data = [], [], []
    kept = []
    for index, (value, array) in enumerate(zip(graph.input, inputs, strict=True)):
        kind = elem(value)
        tensor = array if isinstance(array, TensorProto) else numpy_helper.from_array(np.asarray(array), value.name)
        if stored and index > 0 or tensor.dims == []:  # OpenVINO is not fed scalars
            tensor.name = value.name
            graph.initializer.append(tensor)
            continue
        kept.append(value)
        numbers = numpy_helper.to_array(tensor)
        if kind in WIDENED:
            numbers = numbers.astype(np.float32)
        elif kind not in FED:
            inner = value.name + "_exotic"
            for node in graph.node:
                node.input[:] = [inner if name == value.name else name for name in node.input]
            before.append(helper.make_node("Cast", [value.name], [inner], to=kind))
            numbers = numbers.astype(np.float32)
            value.type.tensor_type.elem_type = TensorProto.FLOAT
        data.append(numpy_helper.from_array(np.ascontiguousarray(numbers).reshape(numbers.shape), f"in_{len(data)}"))
    half = False
    for index, (value, array) in enumerate(zip(graph.output, outputs, strict=True)):
        kind = elem(value)
        numbers = numpy_helper.to_array(array) if isinstance(array, TensorProto) else np.asarray(array)
        half |= kind in WIDENED
        if kind in WIDENED:
            numbers = numbers.astype(np.float32)
        elif kind not in FED:
            inner = value.name + "_exotic"
            for node in graph.node:
                node.output[:] = [inner if name == value.name else name for name in node.output]
                node.input[:] = [inner if name == value.name else name for name in node.input]
            after.append(helper.make_node("Cast", [inner], [value.name], to=TensorProto.FLOAT))
            numbers = numbers.astype(np.float32)
            value.type.tensor_type.elem_type = TensorProto.FLOAT
        data.append(numpy_helper.from_array(np.ascontiguousarray(numbers).reshape(numbers.shape), f"out_{index}"))
    del graph.input[:]
    graph.input.extend(kept)
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    return data, half


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir()
    warnings.simplefilter("ignore")
    for test in collect_testcases(None):
        model = test.model
        operators = {node.op_type for node in model.graph.node}
        if operators & LEFT_OUT or any(opset.domain not in ("", "ai.onnx") for opset in model.opset_import):
            continue
        if "training" in test.name or "train" in test.name.split("_"):
            continue
        inputs, outputs = test.data_sets[0]
        operator = model.graph.node[0].op_type if len(model.graph.node) == 1 else "several"
        written = onnx.ModelProto()
        written.CopyFrom(model)
        if operator in FIRST_OUTPUT:
            del written.graph.output[1:], written.graph.node[0].output[1:]
            outputs = outputs[:1]
        try:
            prepared = prepare(written, inputs, outputs, operator in STORED)
        except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
            print(f"{test.name}: {error}", file=sys.stderr)
            continue
        if prepared is None:
            continue
        data, half = prepared
        name = test.name.removeprefix("test_")
        (folder / f"{name}.onnx").write_bytes(written.SerializeToString())
        record = helper.make_model(helper.make_graph([], "data", [], [], data))
        helper.set_model_props(record, {"operator": operator, "rtol": str(max(test.rtol, 1e-2 if half else 0)),
                                        "atol": str(max(test.atol, 1e-2 if half else 1e-6)),
                                        # An image's value lies between two steps, unless one divides by the scale.
                                        "steps": str(int(name.startswith("dynamicquantizelinear")))})
        (folder / f"{name}.data").write_bytes(record.SerializeToString())


if __name__ == "__main__":
    main()
