"""Tests of the server through grpcio, with stubs generated from the proto: calls, health and reflection.

Argument: HOST:PORT.
"""

import json
import pathlib
import sys
import tempfile

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data"

stubs = tempfile.mkdtemp()
assert protoc.main(["protoc", f"-I{ROOT}/proto", f"-I{pathlib.Path(protoc.__file__).parent}/_proto",
                    f"--python_out={stubs}", f"--grpc_python_out={stubs}", "resnet18/v1/classifier.proto"]) == 0
sys.path.insert(0, stubs)
from resnet18.v1 import classifier_pb2 as pb  # noqa: E402
from resnet18.v1 import classifier_pb2_grpc as rpc  # noqa: E402

channel = grpc.insecure_channel(sys.argv[1])
classifier = rpc.ClassifierStub(channel)


def photo(name):
    return pb.Image(encoded=(DATA / name).read_bytes())


def fails(code, **fields):
    """Makes a call that must fail with this status code, and returns the error."""
    try:
        classifier.Classify(pb.ClassifyRequest(**fields))
    except grpc.RpcError as error:
        assert error.code() == code, error
        return error
    raise AssertionError(f"the call succeeded; {code} was expected")


def test_classify():
    answer = classifier.Classify(pb.ClassifyRequest(image=photo("cat.jpg"), top_k=3), timeout=10)
    assert [c.label for c in answer.classifications][0] == "cat", answer
    assert abs(answer.classifications[0].probability - 0.70) < 0.02, answer
    assert len(answer.classifications) == 3 and answer.model == "resnet18-demo"


def test_errors():
    error = fails(grpc.StatusCode.INVALID_ARGUMENT, image=pb.Image(encoded=b"nonsense"))
    assert "JPEG" in error.details(), error.details()
    error = fails(grpc.StatusCode.NOT_FOUND, image=photo("cat.jpg"), model="other")
    assert "resnet18-demo" in error.details(), error.details()


def test_metadata():
    request = pb.ClassifyRequest(image=photo("cat.jpg"))
    classifier.Classify(request, timeout=60, metadata=[("x-proxy", "a" * 60_000)])
    try:
        classifier.Classify(request, timeout=60, metadata=[("x-proxy", "a" * 90_000)])
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error
        assert "metadata" in error.details() and "at most 65536" in error.details(), error.details()
    else:
        raise AssertionError("metadata of 90 kB was accepted")


def test_deadline():
    try:
        classifier.Classify(pb.ClassifyRequest(image=photo("cat.jpg")), timeout=0.001)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    else:
        raise AssertionError("a deadline of one millisecond was met")


def test_stream():
    def messages():
        yield pb.StreamClassifyRequest(config=pb.StreamConfig(top_k=1, policy=pb.FRAME_POLICY_EVERY))
        for number in range(20):
            name = "cat.jpg" if number % 2 == 0 else "sunflower_q30.jpg"
            yield pb.StreamClassifyRequest(frame=pb.Frame(id=number, image=photo(name)))

    answers = list(classifier.StreamClassify(messages(), timeout=60))
    assert [a.frame_id for a in answers] == list(range(20))
    labels = [a.result.classifications[0].label for a in answers]
    assert labels == ["cat", "sunflower"] * 10, labels


def test_retries():
    # Without the server's retry delays, these clients would give up after 40 ms.
    policy = {"maxAttempts": 5, "initialBackoff": "0.01s", "maxBackoff": "0.01s", "backoffMultiplier": 1,
              "retryableStatusCodes": ["RESOURCE_EXHAUSTED"]}
    config = {"methodConfig": [{"name": [{"service": "resnet18.v1.Classifier"}], "retryPolicy": policy}]}
    impatient = rpc.ClassifierStub(grpc.insecure_channel(sys.argv[1], [("grpc.service_config", json.dumps(config))]))
    request = pb.ClassifyRequest(image=photo("sunflower_q30.jpg"), top_k=1)
    calls = [impatient.Classify.future(request, timeout=60) for _ in range(80)]
    labels = {call.result().classifications[0].label for call in calls}
    assert labels == {"sunflower"}, labels


def test_health():
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "resnet18.v1.Classifier", "inference.GRPCInferenceService"):
        status = stub.Check(health_pb2.HealthCheckRequest(service=service)).status
        assert status == health_pb2.HealthCheckResponse.SERVING


def test_reflection():
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {"resnet18.v1.Classifier", "grpc.health.v1.Health"} <= set(database.get_services())
    pool = DescriptorPool(database)
    service = pool.FindServiceByName("resnet18.v1.Classifier")
    assert sorted(m.name for m in service.methods) == ["Classify", "ClassifyBatch", "ListModels", "StreamClassify"]
    assert "ModelInfer" in pool.FindServiceByName("inference.GRPCInferenceService").methods_by_name


for name, test in list(globals().items()):
    if name.startswith("test_"):
        test()
        print(f"{name} ok")
