"""A client for resnet18, an image-classification server over gRPC."""

from .client import Classifier, ImageSource, RegionSource, raw, region

__all__ = ["Classifier", "ImageSource", "RegionSource", "raw", "region"]
