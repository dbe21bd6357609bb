"""Writes tests/data/avif: a part of a cat in every kind of AVIF, and the cats of tests/data.

Needs libavif's avifenc, libheif's heif-enc and Pillow:

    python make_avifs.py
"""

import subprocess
from pathlib import Path

from PIL import Image

DATA = Path(__file__).parents[1] / "data"
OUT = DATA / "avif"

# The name of each file, and avifenc's flags for it. Odd sides have chroma of half a sample more.
KINDS = {
    "yuv420": ["-y", "420"],
    "yuv422": ["-y", "422"],
    "yuv444": ["-y", "444"],
    "yuv400": ["-y", "400"],
    "gray_limited": ["-y", "400", "-r", "limited"],
    "limited": ["-y", "420", "-r", "limited"],
    "10bit": ["-y", "420", "-d", "10"],
    "12bit_limited": ["-y", "422", "-d", "12", "-r", "limited"],
    "bt709": ["-y", "444", "--cicp", "1/13/1"],
    "bt2020": ["-y", "444", "-d", "10", "--cicp", "9/13/9"],
    "identity": ["-y", "444", "--cicp", "1/13/0"],
    "ycgco": ["-y", "444", "--cicp", "1/13/8"],
    "cropped": ["-y", "444", "--clap", "49,1,33,1,0,1,0,1"],
    "left": ["-y", "420", "--irot", "1"],
    "mirrored": ["-y", "420", "--imir", "1"],
}


def encode(flags, *files):
    quality = ["--min", "4", "--max", "8", "-s", "4", "-j", "1"]
    subprocess.run(["avifenc", *quality, *flags, *files], check=True, stdout=subprocess.DEVNULL)


OUT.mkdir(exist_ok=True)
source = OUT / "source.png"
cat = Image.open(DATA / "cat.jpg").convert("RGB")
cat.crop((90, 30, 284, 160)).resize((97, 65), Image.Resampling.BOX).save(source, optimize=True)
for name, flags in KINDS.items():
    encode(flags, source, OUT / f"{name}.avif")

# A second picture says how opaque each pixel is.
alpha = Image.open(source).convert("RGBA")
alpha.putalpha(Image.linear_gradient("L").resize(alpha.size))
alpha.save(OUT / "alpha.png")
encode(["-y", "420"], OUT / "alpha.png", OUT / "alpha.avif")
# Two frames: the first is the picture.
flipped = Image.open(source).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
flipped.save(OUT / "flipped.png")
encode(["-y", "420", "--timescale", "1"], source, OUT / "flipped.png", OUT / "sequence.avif")
# Tiles have at least 64 pixels a side.
tiles = cat.crop((90, 30, 346, 222))
tiles.save(OUT / "tiles.png")
subprocess.run(
    ["avifenc", "--min", "30", "--max", "34", "-g", "2x2", OUT / "tiles.png", OUT / "tiles.avif"],
    check=True,
    stdout=subprocess.DEVNULL,
)
# Many pixels in few bytes.
Image.new("RGB", (3000, 2990), (120, 90, 60)).save(OUT / "flat.png")
subprocess.run(
    ["avifenc", "-y", "420", "-s", "10", OUT / "flat.png", DATA / "bombs/flat.avif"],
    check=True,
    stdout=subprocess.DEVNULL,
)
for made in ["alpha", "flat", "flipped", "tiles"]:
    (OUT / f"{made}.png").unlink()

subprocess.run(["heif-enc", "-A", "-q", "60", "-o", DATA / "cat.avif", DATA / "cat.jpg"], check=True)
turned = Image.open(DATA / "exif_6.jpg")
turned.save(DATA / "exif_6.avif", quality=60, exif=turned.info["exif"])
