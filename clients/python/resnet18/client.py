"""Classifying images and video, with deadlines and retries."""

from __future__ import annotations

import json
import os
from types import TracebackType
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Type, Union

import grpc

from resnet18.v1 import classifier_pb2 as pb
from resnet18.v1 import classifier_pb2_grpc as rpc

#: A path, the content of an image file, or an image that is ready to be sent.
ImageSource = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, pb.Image]

#: Calls that found the server overloaded or restarting are repeated, after the delay that it asks for
#: if it does. Streams are not repeated once they have an answer.
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "resnet18.v1.Classifier"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ]
}

#: In bytes. The server has its own limit.
_MAX_MESSAGE = 64 << 20

_POLICIES = {"every": pb.FRAME_POLICY_EVERY, "latest": pb.FRAME_POLICY_LATEST}


def raw(pixels: object, pixel_format: str = "BGR8") -> pb.Image:
    """An image of raw pixels, such as a frame of OpenCV.

    ``pixels`` is a contiguous array of bytes with the shape (height, width, channels), or (height,
    width) for ``GRAY8``; NumPy's are accepted. ``pixel_format`` is one of ``RGB8``, ``BGR8``, ``RGBA8``,
    ``BGRA8`` and ``GRAY8``.
    """
    channels = {"RGB8": 3, "BGR8": 3, "RGBA8": 4, "BGRA8": 4, "GRAY8": 1}
    if pixel_format not in channels:
        raise ValueError(f"the pixel format is {pixel_format!r}; it must be one of {', '.join(channels)}")
    view = memoryview(pixels)  # type: ignore[arg-type]
    shape = tuple(view.shape or ())
    if len(shape) == 2:
        shape += (1,)
    if view.format != "B" or len(shape) != 3 or shape[2] != channels[pixel_format]:
        raise ValueError(
            f"the pixels have the type {view.format!r} and the shape {shape}; {pixel_format} takes "
            f"bytes of the shape (height, width, {channels[pixel_format]})"
        )
    height, width, _ = shape
    frame = pb.RawFrame(
        format=pb.PixelFormat.Value(f"PIXEL_FORMAT_{pixel_format}"),
        width=width,
        height=height,
        data=view.tobytes(),
    )
    return pb.Image(raw=frame)


def _image(source: ImageSource) -> pb.Image:
    if isinstance(source, pb.Image):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return pb.Image(encoded=bytes(source))
    with open(source, "rb") as file:
        return pb.Image(encoded=file.read())


class Classifier:
    """A connection to a server. It can be used by several threads at once.

    ``target`` is ``HOST:PORT`` or ``unix:PATH``. ``token`` is sent with every call. Without
    ``credentials`` the connection has no TLS; ``grpc.ssl_channel_credentials()`` are those of a server
    with a public certificate. ``timeout`` is the deadline of each call in seconds, its repetitions
    included; ``None`` means that calls may take for ever. ``model`` is the one that answers, by default
    the server's own default.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:8001",
        *,
        token: Optional[str] = None,
        credentials: Optional[grpc.ChannelCredentials] = None,
        timeout: Optional[float] = 10.0,
        model: str = "",
    ) -> None:
        options = [
            ("grpc.enable_retries", 1),
            ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
            # A call can only be repeated while its message is kept, by default up to 256 KiB.
            ("grpc.per_rpc_retry_buffer_size", _MAX_MESSAGE),
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
        ]
        if credentials is None:
            self.channel = grpc.insecure_channel(target, options)
        else:
            self.channel = grpc.secure_channel(target, credentials, options)
        #: The generated client, for what this class does not offer.
        self.stub = rpc.ClassifierStub(self.channel)
        self._timeout = timeout
        self._model = model
        self._metadata: Sequence[Tuple[str, str]] = (
            [("authorization", f"Bearer {token}")] if token else []
        )

    def classify(
        self,
        image: ImageSource,
        *,
        top_k: int = 5,
        min_probability: float = 0.0,
        model: Optional[str] = None,
        timeout: Optional[float] = None,
    ) -> List[pb.Classification]:
        """The most probable classes of an image, with ``class_id``, ``label`` and ``probability``."""
        request = pb.ClassifyRequest(
            model=self._model if model is None else model,
            image=_image(image),
            top_k=top_k,
            min_probability=min_probability,
        )
        answer = self.stub.Classify(request, **self._call(timeout))
        return list(answer.classifications)

    def stream(
        self,
        frames: Iterable[ImageSource],
        *,
        policy: str = "every",
        top_k: int = 1,
        min_probability: float = 0.0,
        smoothing: float = 0.0,
        model: Optional[str] = None,
    ) -> Iterator[pb.StreamClassifyResponse]:
        """The answers for the frames of a video, as they come; ``frame_id`` counts from 0.

        With the policy ``latest`` a newer frame replaces the one that waits, as for live video.
        ``smoothing`` is the half-life, in seconds, of a mean over the frames. A frame that can't be
        decoded has an ``error`` in place of a ``result``. Streams have no deadline.
        """
        if policy not in _POLICIES:
            raise ValueError(f"the policy is {policy!r}; it must be 'every' or 'latest'")
        config = pb.StreamConfig(
            model=self._model if model is None else model,
            top_k=top_k,
            min_probability=min_probability,
            policy=_POLICIES[policy],
        )
        if smoothing > 0:
            config.smoothing.FromMilliseconds(round(smoothing * 1000))

        def messages() -> Iterator[pb.StreamClassifyRequest]:
            yield pb.StreamClassifyRequest(config=config)
            for number, frame in enumerate(frames):
                yield pb.StreamClassifyRequest(frame=pb.Frame(id=number, image=_image(frame)))

        return iter(self.stub.StreamClassify(messages(), metadata=self._metadata))

    def models(self, *, timeout: Optional[float] = None) -> List[pb.Model]:
        """What is served: names, labels, input sizes, engines and states."""
        return list(self.stub.ListModels(pb.ListModelsRequest(), **self._call(timeout)).models)

    def close(self) -> None:
        """Ends the connection."""
        self.channel.close()

    def __enter__(self) -> "Classifier":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def _call(self, timeout: Optional[float]) -> Dict[str, Any]:
        return {
            "timeout": self._timeout if timeout is None else timeout,
            "metadata": self._metadata,
        }
