"""A real Chromium without a window, whose camera plays a prepared video."""

import base64
import os
import pathlib
import subprocess
import sys
import time

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

PHOTOS = pathlib.Path(__file__).resolve().parents[1] / "data/photos"
WIDTHS = (375, 768, 1440)

FLAGS = ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "hide-scrollbars",
         "disable-background-networking", "disable-component-update", "disable-sync", "use-fake-device-for-media-stream")


def alternating_video(path, photos, seconds):
    """A video of each photo in turn, moving a little, in the format of Chromium's fake camera, which plays it in a loop."""
    inputs, filters = [], []
    for i, photo in enumerate(photos):
        inputs += ["-loop", "1", "-framerate", "30", "-t", str(seconds), "-i", str(photo)]
        filters.append(f"[{i}]scale=800:600:force_original_aspect_ratio=increase,crop=800:600,setsar=1,"
                       f"crop=640:480:x='80+80*sin(n/23)':y='60+60*sin(n/31)'[v{i}]")
    joined = "".join(f"[v{i}]" for i in range(len(photos))) + f"concat=n={len(photos)}[v]"
    subprocess.run(["ffmpeg", "-v", "error", "-y", *inputs, "-filter_complex", ";".join([*filters, joined]), "-map", "[v]",
                    "-pix_fmt", "yuvj420p", "-q:v", "5", "-f", "mjpeg", path], check=True)
    return path


def pictures_of(photo, folder, count):
    """Writes different pictures of a photo into a folder."""
    folder.mkdir(parents=True)
    subprocess.run(["ffmpeg", "-v", "error", "-loop", "1", "-framerate", "10", "-i", str(photo), "-frames:v", str(count), "-vf",
                    "scale=480:360:force_original_aspect_ratio=increase,crop=480:360,"
                    "crop=360:270:x='mod(13*n,120)':y='mod(7*n,90)'", "-q:v", "3", str(folder / "%02d.jpg")], check=True)
    return folder


class Page:
    """The page in a browser, with what tests ask of it."""

    def __init__(self, folder, video=None):
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in (*FLAGS, f"user-data-dir={folder / 'profile'}", *([f"use-file-for-fake-video-capture={video}"] if video else [])):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
        self.driver.set_script_timeout(120)
        self.cdp("Page.addScriptToEvaluateOnNewDocument", source="""
            window.violations = [];
            document.addEventListener("securitypolicyviolation", (event) => violations.push(`${event.violatedDirective} ${event.blockedURI}`));
        """)

    def cdp(self, command, **arguments):
        return self.driver.execute_cdp_cmd(command, arguments)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def at(self, name):
        """The element with this id."""
        return self.driver.find_element(By.ID, name)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def until(self, what, condition, seconds=60):
        """Waits until the condition holds, and returns its value; `what` describes it."""
        def holds(_):
            try:
                return condition()
            except (IndexError, ValueError, StaleElementReferenceException):
                return False
        return WebDriverWait(self.driver, seconds, 0.1).until(holds, what)

    def allow_camera(self, origin):
        self.cdp("Browser.setPermission", permission={"name": "camera"}, setting="granted", origin=origin)

    def show(self, width, scheme, height=900):
        """Sets the page's width and colour scheme."""
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)

    def picture(self, **options):
        """The page as a file's content: a PNG, unless the options say otherwise."""
        return base64.b64decode(self.cdp("Page.captureScreenshot", **options)["data"])

    def check_widths(self, name):
        """At every width, in both colour schemes, the page does not scroll sideways; with SHOTS set, pictures of it go there."""
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                self.show(width, scheme)
                inner, needed = self.run("return [innerWidth, document.documentElement.scrollWidth]")
                assert needed <= inner == width, (name, width, inner, needed)
                wide = self.run("""
                    return [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility() && !one.closest(".unseen, svg")
                        && one.getBoundingClientRect().right > innerWidth + 0.5).map((one) => one.outerHTML.slice(0, 200));
                """)
                assert wide == [], (name, width, wide)
                if os.environ.get("SHOTS"):
                    shot = pathlib.Path(os.environ["SHOTS"], f"{name}-{width}-{scheme}.png")
                    shot.write_bytes(self.picture(captureBeyondViewport=True))
        self.show(1440, "light")

    def drop(self, paths, onto):
        """Drops files or folders on the middle of an element, as a file manager does."""
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", onto)
        x, y = self.run("const box = arguments[0].getBoundingClientRect(); return [box.x + box.width / 2, box.y + Math.min(box.height / 2, 40)]", onto)
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.cdp("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def run_tests(self, module, places):
        """Runs a module's functions `test_…` in their order, then closes the browser. A failure is explained by the text of these
        elements, the browser's log and, with SHOTS, a picture."""
        try:
            for name, test in list(module.items()):
                if not name.startswith("test_"):
                    continue
                started = time.monotonic()
                try:
                    test()
                except Exception:
                    for place in places:
                        print(f"{place}: {self.at(place).text!r}", file=sys.stderr)
                    print(name, self.driver.get_log("browser"), file=sys.stderr)
                    if os.environ.get("SHOTS"):
                        pathlib.Path(os.environ["SHOTS"], "failed.png").write_bytes(self.picture(captureBeyondViewport=True))
                    raise
                print(f"{name} {time.monotonic() - started:.1f} s ok")
        finally:
            self.driver.quit()
