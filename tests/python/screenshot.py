"""Takes the picture of the live page that the README shows.

Arguments: the URL of a running server's HTTP port, such as http://127.0.0.1:8002, and the file to write (WebP).

The page classifies a video of the photos in tests/data/photos, which Chromium plays as its camera, until the charts
have something to show.
"""

import base64
import pathlib
import subprocess
import sys
import tempfile
import time

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

PHOTOS = pathlib.Path(__file__).resolve().parents[1] / "data/photos"
WIDTH, HEIGHT = 1200, 860
QUALITY = 80
# How long the camera runs before the picture is taken, in seconds: the charts show the last two minutes.
RUN_TIME = 115


def camera_video(folder):
    """A video of one photo after the other, as Chromium's fake camera plays it."""
    photos = sorted(PHOTOS.glob("*.jpg"))
    list_file = folder / "photos.txt"
    list_file.write_text("".join(f"file '{photo}'\nduration 3\n" for photo in photos))
    video = folder / "camera.mjpeg"
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-f", "concat", "-safe", "0", "-i", list_file, "-r", "25", "-vf",
                    "scale=640:480:force_original_aspect_ratio=increase,crop=640:480,format=yuvj420p", "-q:v", "4", video],
                   check=True)
    return video


def browser(folder):
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "hide-scrollbars", "disable-background-networking",
                 "disable-component-update", "disable-sync", "use-fake-device-for-media-stream",
                 f"use-file-for-fake-video-capture={camera_video(folder)}", f"user-data-dir={folder / 'profile'}"):
        options.add_argument(f"--{flag}")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))


def main(url, output):
    with tempfile.TemporaryDirectory() as folder:
        page = browser(pathlib.Path(folder))
        try:
            page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                 {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False})
            page.execute_cdp_cmd("Browser.setPermission",
                                 {"permission": {"name": "camera"}, "setting": "granted", "origin": url})
            page.get(url)
            page.find_element(By.ID, "camera").click()

            def top_class(_):
                return page.find_element(By.CSS_SELECTOR, "#answers .label").text

            WebDriverWait(page, 20).until(top_class, "the camera is classified")
            time.sleep(RUN_TIME)
            WebDriverWait(page, 30, 0.1).until(lambda _: top_class(_) == "cat", "the cat comes round again")
            time.sleep(1)

            picture = page.execute_cdp_cmd("Page.captureScreenshot",
                                           {"format": "webp", "quality": QUALITY, "captureBeyondViewport": True})
            pathlib.Path(output).write_bytes(base64.b64decode(picture["data"]))
        finally:
            page.quit()


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), sys.argv[2])
