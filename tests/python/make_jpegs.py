"""Writes random JPEG files of every kind, and what Pillow makes of them.

Usage: make_jpegs.py FOLDER COUNT SEED

For each NAME.jpg there is a NAME.pnm with the pixels as Pillow decodes them, in gray or converted to
RGB. A quarter of the files is written by Pillow, a quarter by libjpeg-turbo's `cjpeg` where it is
installed, and the rest by an encoder of sequential files in this script, which writes what those two
don't: any sampling factors with four channels, several scans in any order, no Huffman tables, and
bytes between the segments. Prints how many files each encoder wrote.
"""

import io
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER, COUNT, SEED = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
RANDOM = random.Random(SEED)
NUMBERS = np.random.default_rng(SEED)
COMMON_SAMPLING = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4), (4, 2), (3, 1)]


def size():
    if RANDOM.random() < 0.9:
        return RANDOM.randint(1, 33), RANDOM.randint(1, 33)
    return RANDOM.randint(34, 200), RANDOM.randint(34, 150)


def picture(width, height, channels):
    """Noise, slopes, or squares."""
    kind = RANDOM.randrange(3)
    if kind == 0:
        values = NUMBERS.integers(0, 256, (height, width, channels))
    elif kind == 1:
        y, x = np.mgrid[0:height, 0:width]
        planes = [x * RANDOM.randint(0, 9) + y * RANDOM.randint(0, 9) for _ in range(channels)]
        values = np.stack(planes, axis=2) % 256
    else:
        squares = NUMBERS.integers(0, 256, (height // 6 + 1, width // 6 + 1, channels))
        values = np.kron(squares, np.ones((6, 6, 1)))[:height, :width]
    return values.astype(np.uint8)


def by_pillow():
    width, height = size()
    mode = RANDOM.choice(["L", "RGB", "RGB", "CMYK"])
    pixels = picture(width, height, {"L": 1, "RGB": 3, "CMYK": 4}[mode])
    image = Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels, mode)
    options = {
        "quality": RANDOM.choice([5, 30, 75, 95]),
        "progressive": RANDOM.random() < 0.5,
        "optimize": RANDOM.random() < 0.3,
    }
    if mode == "RGB":
        options["subsampling"] = RANDOM.randrange(3)
        options["keep_rgb"] = options["subsampling"] == 0 and RANDOM.random() < 0.3
    if RANDOM.random() < 0.3:
        options["restart_marker_blocks"] = RANDOM.randint(1, 9)
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    data = file.getvalue()
    if mode == "CMYK" and RANDOM.random() < 0.5:
        # The same data declared as YCCK.
        transform = data.index(b"Adobe") + 11
        data = data[:transform] + b"\2" + data[transform + 1 :]
    return data


def progression(components):
    """A random order of scans that ends with every bit, or before it, for cjpeg."""
    low = RANDOM.randint(0, 2)
    everything = ",".join(map(str, range(components)))
    first = f"{everything}: 0-0, 0, {low};"
    queues = [[f"{everything}: 0-0, {bit + 1}, {bit};" for bit in reversed(range(low))]]
    for component in range(components):
        start = 1
        for end in sorted(RANDOM.sample(range(1, 63), RANDOM.randint(0, 2))) + [63]:
            low = RANDOM.randint(0, 3)
            band = f"{component}: {start}-{end}"
            refinements = [f"{band}, {bit + 1}, {bit};" for bit in reversed(range(low))]
            queues.append([f"{band}, 0, {low};", *refinements])
            start = end + 1

    scans = [first]
    while queues := [queue for queue in queues if queue]:
        scans.append(RANDOM.choice(queues).pop(0))
    if RANDOM.random() < 0.3:
        scans = scans[: RANDOM.randint(1, len(scans))]
    return "\n".join(scans)


def by_cjpeg():
    width, height = size()
    components = RANDOM.choice([1, 3, 3])
    arguments = ["cjpeg", "-quality", str(RANDOM.choice([5, 30, 75, 95]))]
    if components == 1:
        arguments.append("-grayscale")
    if RANDOM.random() < 0.6:
        factors = [RANDOM.choice(COMMON_SAMPLING)] + [(1, 1)] * (components - 1)
    else:
        factors = [(RANDOM.choice([1, 2, 4]), RANDOM.choice([1, 2, 4])) for _ in range(components)]
    arguments += ["-sample", ",".join(f"{h}x{v}" for h, v in factors)]
    mode = RANDOM.choice(["scans", "progressive", "arithmetic", "arithmetic progressive"])
    arguments += [f"-{word}" for word in mode.split() if word != "scans"]
    if mode == "scans":
        scans = FOLDER / "scans.txt"
        scans.write_text(progression(components))
        arguments += ["-scans", str(scans)]
    if RANDOM.random() < 0.3:
        arguments += ["-restart", RANDOM.choice(["1", "1B", "3B", "7B"])]
    pixels = picture(width, height, 3)
    ppm = f"P6 {width} {height} 255\n".encode() + pixels.tobytes()
    done = subprocess.run(arguments, input=ppm, capture_output=True)
    # It has a limit on the blocks that are coded together.
    return done.stdout if done.returncode == 0 else None


def standard_codes():
    """The codes of the standard's tables by class and destination, as Pillow writes them."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    data, position, segments, codes = file.getvalue(), 2, b"", {}
    while data[position + 1] != 0xDA:
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if data[position + 1] == 0xC4:
            segments += data[position : position + 2 + length]
            body = data[position + 4 : position + 2 + length]
            while body:
                counts, code, table, index = body[1:17], 0, {}, 17
                for bits, count in enumerate(counts, 1):
                    for _ in range(count):
                        table[body[index]] = format(code, f"0{bits}b")
                        code, index = code + 1, index + 1
                    code <<= 1
                codes[body[0] >> 4, body[0] & 15] = table
                body = body[index:]
        position += 2 + length
    return segments, codes


TABLES, CODES = standard_codes()


def value_bits(value):
    magnitude = abs(value).bit_length()
    if magnitude == 0:
        return 0, ""
    return magnitude, format(value if value > 0 else value + (1 << magnitude) - 1, f"0{magnitude}b")


def block_bits(block, predictor, table):
    magnitude, bits = value_bits(block[0] - predictor)
    out, zeros = [CODES[0, table][magnitude], bits], 0
    for value in block[1:]:
        if value == 0:
            zeros += 1
            continue
        out += [CODES[1, table][0xF0]] * (zeros // 16)
        magnitude, bits = value_bits(value)
        out += [CODES[1, table][zeros % 16 << 4 | magnitude], bits]
        zeros = 0
    if zeros:
        out.append(CODES[1, table][0])
    return "".join(out)


def random_block(quantization):
    block = [0] * 64
    block[0] = RANDOM.randint(-900, 900) // quantization[0]
    # No sample exceeds the range by more than decoders allow for.
    for _ in range(RANDOM.randint(0, 5)):
        place = RANDOM.choice([RANDOM.randint(1, 5), RANDOM.randint(1, 63)])
        block[place] = RANDOM.randint(-200, 200) // quantization[place]
    return block


def segment(marker, body):
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def junk():
    if RANDOM.random() < 0.95:
        return b""
    return RANDOM.choice([b"\0\0", b"\xff", b"junk", b"\xff\0\x7f"])


def by_this_script():
    width, height = size()
    count = RANDOM.choice([1, 3, 3, 3, 4])
    factors = [RANDOM.choice(COMMON_SAMPLING)] + [(1, 1)] * (count - 1)
    if RANDOM.random() < 0.5:
        factors = [(RANDOM.randint(1, 4), RANDOM.randint(1, 4)) for _ in range(count)]
    h_max, v_max = (max(factor[axis] for factor in factors) for axis in (0, 1))
    if any(h_max % h or v_max % v for h, v in factors):
        return None

    ids = list(range(count))
    RANDOM.shuffle(ids)
    scans = []
    while ids:
        taken = 1 if RANDOM.random() < 0.3 else RANDOM.randint(1, len(ids))
        scans.append(sorted(ids[:taken]))
        ids = ids[taken:]
    if any(len(scan) > 1 and sum(factors[c][0] * factors[c][1] for c in scan) > 10 for scan in scans):
        return None

    names = RANDOM.choice([b"\1\2\3\4", b"RGBK", b"\0\1\2\3"])
    data = b"\xff\xd8"
    if RANDOM.random() < 0.4:
        data += segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
    if RANDOM.random() < 0.4:
        data += segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([RANDOM.randint(0, 2)]))
    wide = RANDOM.random() < 0.3
    quantization = [RANDOM.randint(1, 40 if RANDOM.random() < 0.9 else 300) for _ in range(64)]
    if not wide:
        quantization = [min(value, 255) for value in quantization]
    body = b"".join(value.to_bytes(1 + wide, "big") for value in quantization)
    data += segment(0xDB, bytes([wide << 4]) + body)
    frame = b"\10" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + bytes([count])
    for name, (h, v) in zip(names, factors):
        frame += bytes([name, h << 4 | v, 0])
    data += segment(0xC1 if wide else RANDOM.choice([0xC0, 0xC1]), frame)
    if RANDOM.random() < 0.7:
        data += junk() + TABLES

    for scan in scans:
        interval = RANDOM.choice([0, 0, 1, 2, 5])
        data += segment(0xDD, interval.to_bytes(2, "big"))
        tables = {component: RANDOM.randrange(2) for component in scan}
        entries = b"".join(bytes([names[c], tables[c] * 17]) for c in scan)
        data += junk() + segment(0xDA, bytes([len(scan)]) + entries + b"\0\77\0")
        if len(scan) == 1:
            h, v = factors[scan[0]]
            columns = -(-(-(-width * h // h_max)) // 8)
            rows = -(-(-(-height * v // v_max)) // 8)
            blocks = {scan[0]: 1}
        else:
            columns, rows = -(-width // (8 * h_max)), -(-height // (8 * v_max))
            blocks = {c: factors[c][0] * factors[c][1] for c in scan}

        bits, predictors, marker = "", dict.fromkeys(scan, 0), 0
        for mcu in range(columns * rows):
            if interval and mcu and mcu % interval == 0:
                data += packed(bits) + bytes([0xFF, 0xD0 + marker])
                bits, predictors, marker = "", dict.fromkeys(scan, 0), (marker + 1) % 8
            for component in scan:
                for _ in range(blocks[component]):
                    block = random_block(quantization)
                    bits += block_bits(block, predictors[component], tables[component])
                    predictors[component] = block[0]
        data += packed(bits)
    return data + b"\xff\xd9"


def packed(bits):
    bits += "1" * (-len(bits) % 8)
    return int(bits or "0", 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")


encoders = [by_pillow, by_this_script, by_this_script]
if shutil.which("cjpeg"):
    encoders.append(by_cjpeg)
written = Counter()
while written.total() < COUNT:
    encoder = RANDOM.choice(encoders)
    try:
        data = encoder()
    except OSError:
        # Pillow's buffer was too small for the file.
        continue
    if data is None:
        continue
    image = Image.open(io.BytesIO(data))
    image.load()
    if image.mode != "L":
        image = image.convert("RGB")
    name = f"{written.total():05}_{encoder.__name__}"
    (FOLDER / f"{name}.jpg").write_bytes(data)
    image.save(FOLDER / f"{name}.pnm", "PPM")
    written[encoder.__name__] += 1
print(", ".join(f"{count} {encoder}" for encoder, count in sorted(written.items())))
