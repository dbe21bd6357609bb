"""Makes tests/data/fits: a photo in two sizes, and its crops by every fit and filter, as Pillow and OpenCV compute them.

Needs Pillow, numpy and opencv-python-headless: `python tests/python/make_crops.py`. Each sheet has a row for each fit
and a column for each filter, in the order of FITS and FILTERS. The photo is scikit-image's `chelsea` (CC0).
"""

import math
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

DATA = Path(__file__).parents[1] / "data"
WIDTH, HEIGHT = 40, 32
PADDING = (127, 0, 200)
FILTERS = [
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
    Image.Resampling.NEAREST,
    cv2.INTER_LINEAR,
    cv2.INTER_AREA,
    cv2.INTER_CUBIC,
    cv2.INTER_LANCZOS4,
]


def scale(image, size, filter):
    if isinstance(filter, Image.Resampling):
        return image.resize(size, filter)
    return Image.fromarray(cv2.resize(np.asarray(image), size, interpolation=filter))


def center(image):
    """torchvision's CenterCrop."""
    left, top = int(round((image.width - WIDTH) / 2.0)), int(round((image.height - HEIGHT) / 2.0))
    return image.crop((left, top, left + WIDTH, top + HEIGHT))


def crop(image, filter):
    """torchvision's Resize to a shorter side of 46, and CenterCrop."""
    shorter = min(image.size)
    return center(scale(image, tuple(int(46 * side / shorter) for side in image.size), filter))


def squash(image, filter):
    return scale(image, (WIDTH, HEIGHT), filter)


def squash_and_crop(image, filter):
    """As timm's crop_mode `squash` with a crop_pct of 0.8."""
    return center(scale(image, (int(WIDTH / 0.8), int(HEIGHT / 0.8)), filter))


def letterbox(image, filter):
    """Pillow's ImageOps.pad; sizes and offsets for OpenCV's filters are those of Pillow."""
    if isinstance(filter, Image.Resampling):
        return ImageOps.pad(image, (WIDTH, HEIGHT), filter, PADDING)
    scaled = scale(image, ImageOps.contain(image, (WIDTH, HEIGHT)).size, filter)
    padded = Image.new("RGB", (WIDTH, HEIGHT), PADDING)
    padded.paste(scaled, (round((WIDTH - scaled.width) * 0.5), round((HEIGHT - scaled.height) * 0.5)))
    return padded


def rounded_crop(image, filter):
    """As PaddleClas's ResizeImage(resize_short=46) and CropImage."""
    factor = 46 / min(image.size)
    scaled = scale(image, tuple(round(side * factor) for side in image.size), filter)
    left, top = (scaled.width - WIDTH) // 2, (scaled.height - HEIGHT) // 2
    return scaled.crop((left, top, left + WIDTH, top + HEIGHT))


def line(image, filter):
    """As PaddleOCR's resize_norm_img of lines, with a colour for the padding."""
    width = min(WIDTH, math.ceil(HEIGHT * (image.width / image.height)))
    padded = Image.new("RGB", (WIDTH, HEIGHT), PADDING)
    padded.paste(scale(image, (width, HEIGHT), filter), (0, 0))
    return padded


FITS = [crop, squash, squash_and_crop, letterbox, rounded_crop, line]


def main():
    folder = DATA / "fits"
    folder.mkdir(exist_ok=True)
    cat = Image.open(DATA / "cat.jpg").convert("RGB")
    for name, size in [("large", (180, 113)), ("small", (23, 31))]:
        image = cat.resize(size, Image.Resampling.LANCZOS)
        image.save(folder / f"{name}.png")
        sheet = Image.new("RGB", (WIDTH * len(FILTERS), HEIGHT * len(FITS)))
        for y, fit in enumerate(FITS):
            for x, filter in enumerate(FILTERS):
                sheet.paste(fit(image, filter), (x * WIDTH, y * HEIGHT))
        sheet.save(folder / f"{name}_crops.png")


if __name__ == "__main__":
    main()
