"""Films the live page while it is taught two classes: docs/teach.webp, which the README shows.

Arguments: the URL of a server with --teach and no datasets, such as http://127.0.0.1:8002; a folder with the photos of classes,
CLASS/*.jpg; and the file to write (animated WebP). The page's camera shows these photos, as if they were held before it.
"""

import base64
import pathlib
import subprocess
import sys
import tempfile
import time

from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from chromium import Page

WIDTH, HEIGHT = 1120, 860
QUALITY = 46
CLASSES = ("shoes", "shirt")
# How many photos of each class are taught; as many others are shown afterwards.
TAUGHT, SHOWN = 12, 3
# The largest file, in bytes, and how long one picture of the film is shown at most, in ms.
LARGEST, LONGEST = 2_000_000, 300

# The camera: a canvas that shows one photo after the other. And an arrow where the mouse is, which screenshots do not have.
STAGE = """
    const canvas = Object.assign(document.createElement("canvas"), {width: 640, height: 480});
    const context = canvas.getContext("2d");
    let photos = [], pace = 400, began = 0;
    window.show = async (encoded, milliseconds) => {
        const blob = (text) => new Blob([Uint8Array.from(atob(text), (char) => char.charCodeAt(0))]);
        photos = await Promise.all(encoded.map((text) => createImageBitmap(blob(text))));
        [pace, began] = [milliseconds, performance.now()];
    };
    setInterval(() => {
        const time = performance.now() - began;
        const photo = photos[Math.floor(time / pace) % photos.length];
        context.fillStyle = "#ddd";
        context.fillRect(0, 0, 640, 480);
        if (!photo) return;
        const scale = Math.max(640 / photo.width, 480 / photo.height) * 1.04;
        const [width, height] = [photo.width * scale, photo.height * scale];
        context.drawImage(photo, (640 - width) / 2 + 6 * Math.sin(time / 500), (480 - height) / 2 + 6 * Math.cos(time / 700), width, height);
    }, 50);
    navigator.mediaDevices.getUserMedia = async () => canvas.captureStream(15);
    addEventListener("DOMContentLoaded", () => {
        const arrow = document.createElement("div");
        arrow.innerHTML = '<svg width="26" height="32" viewBox="0 0 13 16"><path d="M1 1v12l3-3 2 5 2-1-2-5h4z" fill="#111" stroke="#fff"/></svg>';
        Object.assign(arrow.style, {position: "fixed", zIndex: 9, left: "0", top: "0", pointerEvents: "none", transform: "translate(600px, 500px)"});
        document.body.append(arrow);
        addEventListener("pointermove", ({clientX, clientY}) => (arrow.style.transform = `translate(${clientX}px, ${clientY}px)`), true);
    });
"""


class Film:
    """The pictures of a page and how long each is shown, in ms."""

    def __init__(self, page, folder):
        self.page, self.folder = page, folder
        self.frames = []

    def shoot(self, seconds=0.0, until=lambda: False, pace=0.2):
        """Films for this long, or until the condition holds, a picture each `pace` seconds; one at least."""
        end = time.monotonic() + seconds
        while True:
            path = self.folder / f"{len(self.frames):04}.png"
            began = time.monotonic()
            path.write_bytes(self.page.picture())
            self.frames.append((path, began))
            if until() or time.monotonic() >= end:
                return
            time.sleep(max(0.0, pace - (time.monotonic() - began)))

    def write(self, output, quality):
        """Encodes the film; what took long is shown shorter."""
        lines = []
        for (path, began), (_, ended) in zip(self.frames, [*self.frames[1:], (None, self.frames[-1][1] + 2)]):
            lines += [f"file '{path}'", f"duration {min(ended - began, LONGEST / 1000 if ended - began < 1.9 else 2):.3f}"]
        frame_list = self.folder / "frames.txt"
        frame_list.write_text("\n".join(lines) + "\n")
        subprocess.run(["ffmpeg", "-v", "error", "-y", "-f", "concat", "-safe", "0", "-i", frame_list, "-fps_mode", "vfr", "-c:v",
                        "libwebp_anim", "-quality", str(quality), "-compression_level", "6", "-loop", "0", output], check=True)


def main(url, photos, output):
    photo = {name: sorted((photos / name).glob("*.jpg")) for name in CLASSES}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        page = Page(folder)
        page.cdp("Page.addScriptToEvaluateOnNewDocument", source=STAGE)
        page.show(WIDTH, "light", HEIGHT)
        film = Film(page, folder)
        try:
            play(page, film, url, photo)
        finally:
            page.driver.quit()
        quality = QUALITY
        film.write(output, quality)
        while pathlib.Path(output).stat().st_size > LARGEST and quality > 10:
            quality -= 8
            film.write(output, quality)


def play(page, film, url, photo):
    at = page.at

    def present(files, pace):
        page.driver.execute_async_script("const [photos, pace, done] = arguments; show(photos, pace).then(done)",
                                         [base64.b64encode(path.read_bytes()).decode() for path in files], pace)

    def move(element):
        """Moves the mouse to an element while it is filmed."""
        page.run("arguments[0].scrollIntoView({block: 'nearest', behavior: 'instant'})", element)
        x, y = page.run("const box = arguments[0].getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]", element)
        start = page.run("return window.mouse ?? [600, 500]")
        for step in (0.35, 0.7, 0.9, 1):
            to = [a + (b - a) * step for a, b in zip(start, (x, y))]
            page.cdp("Input.dispatchMouseEvent", type="mouseMoved", x=to[0], y=to[1])
            film.shoot()
        page.run("window.mouse = arguments[0]", [x, y])
        return x, y

    def press(element):
        x, y = move(element)
        page.cdp("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", clickCount=1)

    def release(element):
        x, y = page.run("return window.mouse")
        page.cdp("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", clickCount=1)

    def write(element, text):
        press(element)
        release(element)
        for letter in text:
            webdriver.ActionChains(page.driver).send_keys(letter).perform()
            film.shoot()
        film.shoot(0.4)
        webdriver.ActionChains(page.driver).send_keys(Keys.ENTER).perform()
        film.shoot(0.4)

    page.driver.get(f"{url}/#teach")
    page.until("the form", lambda: at("dataset-name").is_displayed() and at("state").text == "ready")
    film.shoot(1)
    write(at("dataset-name"), "wardrobe")
    for name in CLASSES:
        write(at("class-name"), name)
        present(photo[name][:TAUGHT], 300)
        card = page.all(".card")[-1]
        button = card.find_element("css selector", ".hold")
        press(button)
        film.shoot(30, lambda: len(card.find_elements("css selector", "li[data-state=kept]")) >= TAUGHT)
        release(button)
        film.shoot(0.4)
    page.until("all are sent", lambda: at("train").is_enabled())
    press(at("train"))
    release(at("train"))
    film.shoot(120, lambda: at("result").is_displayed() and at("train").is_enabled(), pace=1.5)
    film.shoot(2)
    # Photos that it has not seen.
    for index in range(SHOWN):
        for name in CLASSES:
            present([photo[name][TAUGHT + index]], 1000)
            film.shoot(1.6)


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), pathlib.Path(sys.argv[2]), sys.argv[3])
