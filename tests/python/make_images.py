"""Writes random images with Pillow, and what Pillow reads from them, for tests/integration/formats.rs.

Usage: make_images.py FOLDER

Beside each file, NAME.rgb holds the pixels of `Image.convert("RGB")`, except that channels of more
than 8 bits are scaled to 8 instead of clipped. `index.txt` has a line for each file: its name, width,
height, and by how much a channel may differ. Every kind of TIFF of Pillow's table of modes is among
them, most from a writer of this script, which also cuts, orders and predicts as Pillow cannot.
"""

import io
import random
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy
from PIL import Image

SIZES = [(1, 1), (2, 3), (7, 1), (8, 8), (9, 5), (16, 17), (31, 33), (33, 20)]
warnings.simplefilter("ignore")
rng = random.Random(18)
numbers = numpy.random.default_rng(18)
folder = Path(sys.argv[1])
index = []
unreadable = []


def keep(name, data, tolerance=0, expected=None):
    """Writes a file and its pixels, if Pillow reads it."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        pixels = numpy.asarray(image.convert("RGB")) if expected is None else expected
    except Exception as error:
        unreadable.append(f"{name}: {error!r}")
        return
    if pixels.ndim == 2:
        pixels = numpy.repeat(pixels[:, :, None], 3, axis=2)
    height, width = pixels.shape[:2]
    (folder / name).write_bytes(data)
    (folder / (name + ".rgb")).write_bytes(pixels.astype("u1").tobytes())
    index.append(f"{name} {width} {height} {tolerance}")


def size():
    return rng.choice(SIZES)


def picture(width, height, channels, maximum=255, kind="u1"):
    """Smooth with some noise, so that every compression has something to do."""
    y, x, c = numpy.mgrid[0:height, 0:width, 0:channels]
    smooth = (x * 3 + y * 5 + c * 40) * (maximum / 400)
    noise = numbers.integers(0, maximum + 1, (height, width, channels)) * (numbers.random((height, width, 1)) < 0.3)
    return ((smooth + noise) % (maximum + 1)).astype(kind)


def packbits(data):
    """Copies and runs at random, with bytes that do nothing between them."""
    out = bytearray()
    at = 0
    while at < len(data):
        run = 1
        while at + run < len(data) and run < 128 and data[at + run] == data[at]:
            run += 1
        if run > 2:
            out += bytes([257 - run, data[at]])
            at += run
        else:
            copied = min(rng.randint(1, 128), len(data) - at)
            out += bytes([copied - 1]) + data[at : at + copied]
            at += copied
        if rng.random() < 0.1:
            out.append(128)
    return bytes(out)


def reverse_bits(data):
    return bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)


def pack(rows, bits, order):
    """Rows of samples as bytes, each row from a new byte."""
    if rows.dtype.kind == "f" or bits in (8, 16, 32):
        return [row.astype(row.dtype.newbyteorder("<" if order == "II" else ">")).tobytes() for row in rows]
    packed = []
    for row in rows:
        text = "".join(f"{int(sample):0{bits}b}" for sample in row)
        text += "0" * (-len(text) % 8)
        packed.append(bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8)))
    return packed


def predict(rows, samples, predictor, order):
    """Rows of samples as they are stored with this predictor; integers, or the bytes of floats."""
    if predictor == 2:
        predicted = rows.copy()
        predicted[:, samples:] = rows[:, samples:] - rows[:, :-samples]
        return predicted
    parts = rows.astype(">f4").view("u1").reshape(rows.shape[0], rows.shape[1], 4)
    parts = parts.transpose(0, 2, 1).reshape(rows.shape[0], -1)
    predicted = parts.copy()
    predicted[:, samples:] = parts[:, samples:] - parts[:, :-samples]
    return predicted


def tiff(
    pixels,
    photometric,
    bits=8,
    order="II",
    big=False,
    compression=1,
    predictor=1,
    planar=False,
    tile=None,
    rows_per_strip=None,
    fill_order=1,
    extra=(),
    sample_format=1,
    more=(),
):
    """A TIFF file with these pixels, height x width x channels, whose data is at its end."""
    height, width, channels = pixels.shape
    planes = [pixels[:, :, [c]] for c in range(channels)] if planar else [pixels]
    chunks = []
    for plane in planes:
        if tile:
            across, down = -(-width // tile[0]), -(-height // tile[1])
            padded = numpy.zeros((down * tile[1], across * tile[0], plane.shape[2]), plane.dtype)
            padded[:height, :width] = plane
            parts = [
                padded[y * tile[1] : (y + 1) * tile[1], x * tile[0] : (x + 1) * tile[0]]
                for y in range(down)
                for x in range(across)
            ]
        else:
            step = rows_per_strip or height
            parts = [plane[y : y + step] for y in range(0, height, step)]
        for part in parts:
            rows = part.reshape(part.shape[0], -1)
            if predictor > 1:
                rows = predict(rows, part.shape[2], predictor, order)
            data = b"".join(pack(rows, bits if rows.dtype.kind != "u" or rows.dtype.itemsize > 1 else min(bits, 8), order))
            data = {1: bytes, 8: zlib.compress, 32946: zlib.compress, 32773: packbits}[compression](data)
            chunks.append(reverse_bits(data) if fill_order == 2 else data)

    byte = "<" if order == "II" else ">"
    word = 16 if big else 4
    fields = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * channels),
        259: (3, [compression]),
        262: (3, [photometric]),
        277: (3, [channels]),
        284: (3, [2 if planar else 1]),
    }
    if tile:
        fields |= {322: (4, [tile[0]]), 323: (4, [tile[1]]), 324: (word, chunks), 325: (4, [len(c) for c in chunks])}
    else:
        fields |= {278: (4, [rows_per_strip or height]), 273: (word, chunks), 279: (4, [len(c) for c in chunks])}
    if fill_order != 1:
        fields[266] = (3, [fill_order])
    if predictor != 1:
        fields[317] = (3, [predictor])
    if extra:
        fields[338] = (3, list(extra))
    if sample_format != 1:
        fields[339] = (3, [sample_format] * channels)
    fields |= dict(more)

    codes = {3: ("H", 2), 4: ("I", 4), 16: ("Q", 8), 5: ("II", 8)}
    entry, inline, number = (20, 8, "Q") if big else (12, 4, "I")
    start = 16 if big else 8
    table = start + (8 if big else 2) + entry * len(fields) + (8 if big else 4)
    lengths = {tag: codes[kind][1] * len(values) for tag, (kind, values) in fields.items()}
    at = table + sum(length for length in lengths.values() if length > inline)
    places = []
    for chunk in chunks:
        places.append(at)
        at += len(chunk)
    head = order.encode() + struct.pack(byte + "H", 43 if big else 42)
    head += struct.pack(byte + "HHQ", 8, 0, start) if big else struct.pack(byte + "I", start)
    head += struct.pack(byte + ("Q" if big else "H"), len(fields))
    rest = b""
    for tag, (kind, values) in sorted(fields.items()):
        values = places if values is chunks else values
        if kind == 5:
            values = [part for value in values for part in (value, 1)]
        data = struct.pack(byte + codes[kind][0][0] * len(values), *values)
        head += struct.pack(byte + "HH" + number, tag, kind, len(fields[tag][1]))
        if len(data) > inline:
            head += struct.pack(byte + number, table + len(rest))
            rest += data
        else:
            head += data.ljust(inline, b"\0")
    head += bytes(8 if big else 4)
    return head + rest + b"".join(chunks)


def scaled(pixels, maximum):
    return (pixels.astype("u8") * 255 + maximum // 2) // maximum


def own_tiffs():
    layouts = [
        {},
        {"rows_per_strip": 3},
        {"tile": (16, 16)},
        {"rows_per_strip": 2, "planar": True},
        {"tile": (32, 16), "planar": True},
    ]
    compressions = [(1, 1), (8, 1), (8, 2), (32946, 2), (32773, 1)]
    # Photometric interpretation, bits, channels, extra samples.
    kinds = [
        *[(photometric, bits, 1, ()) for photometric in (0, 1, 3) for bits in (1, 2, 4, 8)],
        *[(1, 8, 2, (extra,)) for extra in (0, 2)],
        *[(3, 8, 2, (extra,)) for extra in (0, 2)],
        (2, 8, 3, ()),
        (2, 8, 4, ()),
        *[(2, 8, 4, (extra,)) for extra in (0, 1, 2, 999)],
        *[(2, 8, 5, (extra, 0)) for extra in (0, 1, 2)],
        *[(2, 8, 6, (extra, 0, 0)) for extra in (0, 1, 2)],
        (2, 16, 3, ()),
        *[(2, 16, 4, (extra,)) for extra in (0, 2)],
        (5, 8, 4, ()),
        (5, 8, 5, (0,)),
        (5, 8, 6, (0, 0)),
        (5, 16, 4, ()),
        (8, 8, 3, ()),
    ]
    for photometric, bits, channels, extra in kinds:
        for layout in layouts:
            for compression, predictor in compressions:
                if bits < 8 and predictor > 1:
                    continue
                # In planes Pillow does not see that L*a*b* is signed, whether alpha was multiplied, and
                # without compression that channels have 16 bits.
                unseen = photometric == 8 or extra[:1] == (1,) or (bits == 16 and compression == 1)
                unseen |= photometric == 2 and channels == 4 and not extra
                if layout.get("planar") and (channels == 1 or unseen):
                    continue
                width, height = size()
                kind = "u1" if bits <= 8 else "u2"
                pixels = picture(width, height, channels, 2**bits - 1, kind)
                if photometric == 8:
                    # Colours that sRGB has, and that a conversion does not have to move into it.
                    pixels = (pixels // 8 + numpy.array([130, 250, 240])).astype("u1")
                more = {}
                if photometric == 3:
                    palette = numbers.integers(0, 65536, 3 * 2**bits)
                    more[320] = (3, [int(value) for value in palette])
                order = rng.choice(["II", "MM"])
                data = tiff(
                    pixels,
                    photometric,
                    bits,
                    order=order,
                    compression=compression,
                    predictor=predictor,
                    fill_order=rng.choice([1, 1, 2]) if bits <= 8 and channels < 4 and photometric < 4 else 1,
                    extra=extra,
                    more=more,
                    big=order == "II" and rng.random() < 0.3,
                    **layout,
                )
                tolerance = {(2, 16): 1, (5, 16): 2, (8, 8): 3}.get((photometric, bits), 0)
                keep(f"own_{len(index):04}_{photometric}_{bits}_{channels}.tif", data, tolerance)

    # Single channels of other types, and 16 bits, which Pillow would clip.
    for layout in layouts[:3]:
        for order in ("II", "MM"):
            for compression, predictor in compressions:
                width, height = size()
                options = {"order": order, "compression": compression, "predictor": predictor, **layout}
                pixels = picture(width, height, 1, 65535, "u2")
                keep(f"gray16_{len(index):04}.tif", tiff(pixels, 1, 16, **options), 0, scaled(pixels[:, :, 0], 65535))
                signed = (picture(width, height, 1, 511, "i4") - 128).astype("i2")
                # Pillow mistakes the order of bytes of some compressed files.
                clipped = signed[:, :, 0].clip(0, 255)
                data = tiff(signed, 1, 16, sample_format=2, **options)
                keep(f"signed16_{len(index):04}.tif", data, 0, clipped)
                data = tiff(signed.astype("i4"), 1, 32, sample_format=2, **options)
                keep(f"signed32_{len(index):04}.tif", data, 0, clipped)
                real = (picture(width, height, 1, 511, "f4") * 0.73 - 60).astype("f4")
                if predictor == 2:
                    options["predictor"] = 3
                data = tiff(real, 1, 32, sample_format=3, **options)
                keep(f"float_{len(index):04}.tif", data, 0, real[:, :, 0].clip(0, 255))
        pixels = picture(*size(), 1, 4095, "u2")
        keep(f"gray12_{len(index):04}.tif", tiff(pixels, 1, 12, **layout), 0, scaled(pixels[:, :, 0], 4095))


def pillow_files():
    compressions = [None, "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "zstd", "jpeg"]
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"):
        for compression in [*compressions, *(["group3", "group4", "tiff_ccitt"] if mode == "1" else [])]:
            for _ in range(2):
                width, height = size()
                source = Image.fromarray(picture(width, height, 3))
                expected = None
                if mode == "I;16":
                    values = picture(width, height, 1, 65535, "u2")[:, :, 0]
                    image, expected = Image.fromarray(values), scaled(values, 65535)
                elif mode == "LAB":
                    image = Image.merge("LAB", [band.point(lambda v: v // 8 + 120) for band in source.split()])
                elif mode == "PA":
                    image = source.convert("P").convert("PA")
                else:
                    image = source.convert(mode)
                buffer = io.BytesIO()
                options = {"big_tiff": rng.random() < 0.2}
                if compression != "jpeg":
                    options["strip_size"] = 64
                if compression:
                    options["compression"] = compression
                    if compression in ("tiff_lzw", "tiff_adobe_deflate", "zstd") and rng.random() < 0.5:
                        if mode not in ("1", "F"):
                            options["tiffinfo"] = {317: 2}
                try:
                    image.save(buffer, "TIFF", **options)
                except Exception as error:
                    unreadable.append(f"{mode} with {compression}: {error!r}")
                    continue
                tolerance = {"YCbCr": 2, "LAB": 4}.get(mode, 0)
                if compression == "jpeg":
                    if mode == "LA":
                        # JPEG of two channels is rejected.
                        continue
                    tolerance = 12
                keep(f"pillow_{len(index):04}_{mode.replace(';', '')}_{compression}.tif", buffer.getvalue(), tolerance, expected)

    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        for _ in range(4):
            width, height = size()
            expected = None
            if mode == "I;16":
                values = picture(width, height, 1, 65535, "u2")[:, :, 0]
                image, expected = Image.fromarray(values), scaled(values, 65535)
            else:
                image = Image.fromarray(picture(width, height, 3)).convert(mode)
            buffer = io.BytesIO()
            image.save(buffer, "PNG", **({"bits": rng.choice([1, 2, 4, 8])} if mode == "P" else {}))
            keep(f"{len(index):04}_{mode.replace(';', '')}.png", buffer.getvalue(), 0, expected)
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        for _ in range(4):
            buffer = io.BytesIO()
            Image.fromarray(picture(*size(), 3)).convert(mode).save(buffer, "BMP")
            keep(f"{len(index):04}_{mode}.bmp", buffer.getvalue())
    for mode in ("RGB", "RGBA"):
        for lossless in (True, False):
            for _ in range(3):
                buffer = io.BytesIO()
                image = Image.fromarray(picture(*size(), len(mode)))
                image.save(buffer, "WEBP", lossless=lossless, exact=True)
                keep(f"{len(index):04}_{mode}.webp", buffer.getvalue(), 0 if lossless else 3)
    for mode in ("1", "L", "P", "RGB"):
        for _ in range(2):
            buffer = io.BytesIO()
            Image.fromarray(picture(*size(), 3)).convert(mode).save(buffer, "GIF")
            keep(f"{len(index):04}_{mode}.gif", buffer.getvalue())
    for mode in ("L", "LA", "P", "RGB", "RGBA"):
        for compression in (None, "tga_rle"):
            for _ in range(2):
                buffer = io.BytesIO()
                image = Image.fromarray(picture(*size(), 3)).convert(mode)
                image.save(buffer, "TGA", compression=compression, orientation=rng.choice([1, -1]))
                keep(f"{len(index):04}_{mode}.tga", buffer.getvalue())
    for mode in ("RGB", "RGBA"):
        for _ in range(4):
            buffer = io.BytesIO()
            Image.fromarray(picture(*size(), len(mode))).save(buffer, "QOI")
            keep(f"{len(index):04}_{mode}.qoi", buffer.getvalue())
    for bitmap_format in ("png", "bmp"):
        for _ in range(4):
            # Several sizes, of which the largest is not the first.
            sides = sorted({rng.randint(8, 60) for _ in range(3)})
            buffer = io.BytesIO()
            image = Image.fromarray(picture(64, 64, 4))
            image.save(buffer, "ICO", sizes=[(side, side) for side in sides], bitmap_format=bitmap_format)
            keep(f"{len(index):04}_{bitmap_format}.ico", buffer.getvalue())
    # What is between samples of chroma is not the same in all decoders.
    for subsampling in ("4:4:4", "4:0:0"):
        for _ in range(4):
            buffer = io.BytesIO()
            image = Image.fromarray(picture(*size(), 3))
            image.save(buffer, "AVIF", quality=rng.choice([30, 60, 90]), subsampling=subsampling, speed=9)
            keep(f"{len(index):04}_{subsampling.replace(':', '')}.avif", buffer.getvalue(), 2)


own_tiffs()
pillow_files()
(folder / "index.txt").write_text("\n".join(index) + "\n")
for line in unreadable:
    print("not written or not read by Pillow:", line)
print(len(index), "images")
