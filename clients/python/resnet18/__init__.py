"""A client for resnet18, an image-classification server over gRPC."""

from .client import Classifier, ImageSource, raw

__all__ = ["Classifier", "ImageSource", "raw"]
