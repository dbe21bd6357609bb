"""Takes the picture of the live page that the README shows.

Arguments: the URL of a running server's HTTP port, such as http://127.0.0.1:8002, and the file to write (WebP).

The page classifies a video of the photos in tests/data/photos, which Chromium plays as its camera, until the charts
have something to show.
"""

import pathlib
import subprocess
import sys
import tempfile
import time

from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from chromium import PHOTOS, Page

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


def main(url, output):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        browser = Page(folder, camera_video(folder))
        page = browser.driver
        try:
            browser.show(WIDTH, "light", HEIGHT)
            browser.allow_camera(url)
            page.get(url)
            page.find_element(By.ID, "camera").click()

            def top_class(_):
                return page.find_element(By.CSS_SELECTOR, "#answers .label").text

            WebDriverWait(page, 20).until(top_class, "the camera is classified")
            time.sleep(RUN_TIME)
            WebDriverWait(page, 30, 0.1).until(lambda _: top_class(_) == "cat", "the cat comes round again")
            time.sleep(1)

            picture = browser.picture(format="webp", quality=QUALITY, captureBeyondViewport=True)
            pathlib.Path(output).write_bytes(picture)
        finally:
            page.quit()


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), sys.argv[2])
