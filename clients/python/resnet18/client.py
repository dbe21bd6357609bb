"""Classifying images and video, with deadlines and retries."""

from __future__ import annotations

import itertools
import os
import time
from types import TracebackType
from typing import Any, Callable, Iterable, Iterator, List, Optional, Sequence, Tuple, Type, Union

import grpc

from resnet18.v1 import classifier_pb2 as pb
from resnet18.v1 import classifier_pb2_grpc as rpc

#: A path, the content of an image file, or an image that is ready to be sent.
ImageSource = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, pb.Image]
#: A part of an image: left, top, width and height in pixels, or what :func:`region` makes.
RegionSource = Union[Tuple[float, float, float, float], pb.Region]

#: What is worth repeating: the server is overloaded, or it restarts.
_TEMPORARY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
#: How often a call without a deadline is made at most.
_MAX_ATTEMPTS = 10

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
        format=f"PIXEL_FORMAT_{pixel_format}",
        width=width,
        height=height,
        data=view.tobytes(),
    )
    return pb.Image(raw=frame)


def region(
    left: float, top: float, width: float, height: float, *, fractions: bool = False
) -> pb.Region:
    """A part of an upright image, in pixels, or in fractions of its size from 0 to 1."""
    unit = pb.REGION_UNIT_FRACTIONS if fractions else pb.REGION_UNIT_PIXELS
    return pb.Region(left=left, top=top, width=width, height=height, unit=unit)


def _regions(sources: Iterable[RegionSource]) -> List[pb.Region]:
    return [one if isinstance(one, pb.Region) else region(*one) for one in sources]


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
            # A library's own retries end after five attempts, however much time is left.
            ("grpc.enable_retries", 0),
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
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        model: Optional[str] = None,
        timeout: Optional[float] = None,
    ) -> List[pb.Classification]:
        """The most probable classes of an image, with ``class_id``, ``label`` and ``probability``.

        ``allow`` and ``deny`` are labels, or indices as text. They change no probability. An empty
        ``label`` means that the image shows none of the model's classes.
        """
        request = pb.ClassifyRequest(
            model=self._model if model is None else model,
            image=_image(image),
            top_k=top_k,
            min_probability=min_probability,
            allow_labels=allow,
            deny_labels=deny,
        )
        answer = self._call(self.stub.Classify, request, timeout)
        return list(answer.classifications)

    def classify_regions(
        self,
        image: ImageSource,
        regions: Iterable[RegionSource],
        *,
        top_k: int = 5,
        min_probability: float = 0.0,
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        model: Optional[str] = None,
        timeout: Optional[float] = None,
    ) -> List[List[pb.Classification]]:
        """The most probable classes of each of up to 64 parts of an image, which is decoded once."""
        request = pb.ClassifyRequest(
            model=self._model if model is None else model,
            image=_image(image),
            top_k=top_k,
            min_probability=min_probability,
            regions=_regions(regions),
            allow_labels=allow,
            deny_labels=deny,
        )
        if not request.regions:
            return []
        answer = self._call(self.stub.Classify, request, timeout)
        return [list(part.classifications) for part in answer.regions]

    def classify_batch(
        self,
        images: Iterable[ImageSource],
        *,
        top_k: int = 5,
        min_probability: float = 0.0,
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        model: Optional[str] = None,
        timeout: Optional[float] = None,
    ) -> List[pb.ImageResult]:
        """What became of each of up to 64 images: a ``result``, or an ``error`` in its place."""
        request = pb.ClassifyBatchRequest(
            model=self._model if model is None else model,
            images=[_image(image) for image in images],
            top_k=top_k,
            min_probability=min_probability,
            allow_labels=allow,
            deny_labels=deny,
        )
        return list(self._call(self.stub.ClassifyBatch, request, timeout).results)

    def embed(
        self,
        image: ImageSource,
        *,
        normalize: bool = True,
        model: Optional[str] = None,
        timeout: Optional[float] = None,
    ) -> List[float]:
        """The embedding of an image, by default of the length 1, for search and comparison."""
        request = pb.ClassifyRequest(
            model=self._model if model is None else model,
            image=_image(image),
            top_k=1,
            want_embedding=True,
            normalize_embedding=normalize,
        )
        return list(self._call(self.stub.Classify, request, timeout).embedding.values)

    def stream(
        self,
        frames: Iterable[ImageSource],
        *,
        policy: str = "every",
        top_k: int = 1,
        min_probability: float = 0.0,
        smoothing: float = 0.0,
        regions: Iterable[RegionSource] = (),
        want_embedding: bool = False,
        normalize_embedding: bool = False,
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        model: Optional[str] = None,
    ) -> Iterator[pb.StreamClassifyResponse]:
        """The answers for the frames of a video, as they come; ``frame_id`` counts from 0.

        With the policy ``latest`` a newer frame replaces the one that waits, as for live video.
        ``smoothing`` is the half-life, in seconds, of a mean over the frames. A frame that can't be
        decoded has an ``error`` in place of a ``result``. ``regions`` are classified in every frame, in
        place of the whole. Streams have no deadline.
        """
        if policy not in _POLICIES:
            raise ValueError(f"the policy is {policy!r}; it must be 'every' or 'latest'")
        config = pb.StreamConfig(
            model=self._model if model is None else model,
            top_k=top_k,
            min_probability=min_probability,
            policy=_POLICIES[policy],
            want_embedding=want_embedding,
            normalize_embedding=normalize_embedding,
            regions=_regions(regions),
            allow_labels=allow,
            deny_labels=deny,
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
        return list(self._call(self.stub.ListModels, pb.ListModelsRequest(), timeout).models)

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

    def _call(self, method: Callable[..., Any], request: Any, timeout: Optional[float]) -> Any:
        """Makes a call, and repeats it until the deadline while the server can't answer it yet."""
        limit = self._timeout if timeout is None else timeout
        deadline = None if limit is None else time.monotonic() + limit
        for attempt in itertools.count(1):
            left = None if deadline is None else max(deadline - time.monotonic(), 0.001)
            try:
                return method(request, timeout=left, metadata=self._metadata)
            except grpc.RpcError as error:
                delay = _retry_delay(error, attempt)
                if delay is None:
                    raise
                if deadline is None and attempt == _MAX_ATTEMPTS:
                    raise
                if deadline is not None and time.monotonic() + delay >= deadline:
                    raise
                time.sleep(delay)


def _retry_delay(error: grpc.RpcError, attempt: int) -> Optional[float]:
    """After how many seconds a failed call is to be repeated; ``None`` if it is not."""
    if not isinstance(error, grpc.Call) or error.code() not in _TEMPORARY:
        return None
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-retry-pushback-ms":
            return max(int(value), 1) / 1000
    if error.code() == grpc.StatusCode.UNAVAILABLE:
        return min(0.1 * 2 ** (attempt - 1), 5.0)
    return None
