"""Tests of the page at / in a real Chromium, whose camera plays a prepared video.

Arguments: the URL and process id of a server; the URL of a second one, which requires a token and accepts one call at a
time; that token; and a folder for the browser's files.
"""

import base64
import os
import pathlib
import signal
import subprocess
import sys

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from chromium import WIDTHS, Page

DATA = pathlib.Path(__file__).resolve().parents[1] / "data"
URL, PID, GUARDED, TOKEN, FOLDER = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], pathlib.Path(sys.argv[5])


def camera_video():
    """Makes a video of a slightly moving photo of a cat, in the format of Chromium's fake camera."""
    path = FOLDER / "camera.mjpeg"
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-loop", "1", "-framerate", "25", "-i", DATA / "photos/cat.jpg", "-t", "2",
                    "-vf", "scale=760:-2,crop=640:480:x='min(n,80)':y=0", "-q:v", "4", path], check=True)
    return path


browser = Page(FOLDER, camera_video())
page, at, show = browser.driver, browser.at, browser.show


def until(what, condition, seconds=20):
    """Waits until the condition holds; `what` describes it."""
    browser.until(what, condition, seconds)


def labels():
    return [label.text for label in page.find_elements(By.CSS_SELECTOR, "#answers .label")]


def answered_requests():
    """The metrics of successful Classify requests, on the server whose page is open."""
    text = page.execute_async_script("fetch('/metrics').then((response) => response.text()).then(arguments[0])")
    return "\n".join(line for line in text.splitlines() if "_requests_total{" in line and 'code="OK"' in line and "Classify" in line)


def allow_camera(setting):
    page.execute_cdp_cmd("Browser.setPermission", {"permission": {"name": "camera"}, "setting": setting, "origin": URL})


def choose(path):
    at("file").send_keys(str(path))


# Each line of text as [text, left, top, right, bottom], without text for screen readers only.
LINES = """
    const lines = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode;
        const parent = node.parentElement;
        if (!node.data.trim() || parent.closest(".unseen, noscript, option") || !parent.checkVisibility()) continue;
        const range = document.createRange();
        range.selectNodeContents(node);
        for (const { left, top, right, bottom } of range.getClientRects()) lines.push([node.data.trim(), left, top, right, bottom]);
    }
    return lines;
"""


def check_layout():
    """At every width, the page does not scroll sideways and no texts overlap."""
    for width in WIDTHS:
        for scheme in ("light", "dark"):
            show(width, scheme)
            inner, needed = page.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
            assert needed <= inner == width, (width, inner, needed)
            lines = page.execute_script(LINES)
            assert len(lines) > 25, lines
            for i, (text, left, top, right, bottom) in enumerate(lines):
                assert left >= 0 and right <= width + 0.5, (width, text, left, right)
                for other, *box in lines[:i]:
                    wide = min(right, box[2]) - max(left, box[0])
                    high = min(bottom, box[3]) - max(top, box[1])
                    # A line's box is higher than its letters.
                    assert wide <= 1 or high <= 4, (width, text, other, wide, high)
            if os.environ.get("SHOTS"):
                shot(f"{len(os.listdir(os.environ['SHOTS'])):02}-{width}-{scheme}")
    show(1440, "light")


def shot(name):
    """Saves a screenshot in the folder SHOTS, for developers of the page."""
    pathlib.Path(os.environ["SHOTS"], f"{name}.png").write_bytes(browser.picture(captureBeyondViewport=True))


def test_the_page_shows_the_state_and_the_models():
    page.get(URL)
    until("the server is ready", lambda: at("state").text == "ready")
    until("the model is listed", lambda: "resnet18-demo" in at("model-list").text)
    assert len(at("model-list").text.split("·")) == 3, at("model-list").text
    assert at("version").text
    check_layout()


def test_colours_follow_the_systems_colour_scheme():
    def background(scheme):
        show(1440, scheme)
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background("light") != background("dark")


def test_a_photo_is_classified():
    choose(DATA / "photos/cat.jpg")
    until("a cat", lambda: labels()[0] == "cat")
    assert len(labels()) == 5
    assert at("spoken").get_attribute("textContent").startswith("cat, ")
    assert "ms" in at("trip").text and at("photo").is_displayed() and not at("trouble").is_displayed()
    bars = [float(page.execute_script("return new DOMMatrix(arguments[0].style.transform).a", bar))
            for bar in page.find_elements(By.CSS_SELECTOR, "#answers i")]
    assert bars == sorted(bars, reverse=True) and bars[0] > 0.3, bars


def test_a_file_that_is_no_image_shows_an_error_until_the_next_one():
    (FOLDER / "notes.jpg").write_text("nonsense")
    choose(FOLDER / "notes.jpg")
    until("the reason", lambda: "can't read this image" in at("trouble").text and "JPEG" in at("trouble").text)
    assert labels() == [""] * 5
    choose(DATA / "photos/pizza.jpg")
    until("a pizza", lambda: labels()[0] == "pizza")
    assert not at("trouble").is_displayed()


def test_a_file_that_only_the_browser_can_show_is_converted():
    cat = base64.b64encode((DATA / "photos/cat.jpg").read_bytes()).decode()
    (FOLDER / "drawing.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="4000" height="3000">'
        f'<image href="data:image/jpeg;base64,{cat}" width="4000" height="3000" preserveAspectRatio="xMidYMid slice"/></svg>')
    choose(FOLDER / "drawing.svg")
    until("a cat", lambda: labels()[0] == "cat")
    assert "converted it to JPEG" in at("converted").text and not at("trouble").is_displayed()
    choose(DATA / "photos/pizza.jpg")
    until("a pizza", lambda: labels()[0] == "pizza")
    assert not at("converted").is_displayed()


def test_a_file_that_is_too_large_is_not_sent():
    (FOLDER / "large.jpg").write_bytes(b"a" * (17 << 20))
    choose(FOLDER / "large.jpg")
    until("the limit", lambda: "has 17.0 MiB, and this server takes 16.0 MiB" in at("trouble").text)


def test_a_dropped_photo_is_classified():
    page.execute_script("""
        const bytes = Uint8Array.from(atob(arguments[0]), (char) => char.charCodeAt(0));
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([bytes], "dropped.jpg"));
        document.getElementById("stage").dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer }));
    """, base64.b64encode((DATA / "photos/sunflower.jpg").read_bytes()).decode())
    until("a sunflower", lambda: labels()[0] == "sunflower")


def test_a_denied_camera_shows_advice():
    allow_camera("denied")
    at("camera").click()
    until("advice", lambda: "not allowed" in at("trouble").text)
    allow_camera("granted")
    until("no trouble any more", lambda: not at("trouble").is_displayed())


def test_the_camera_is_classified_continuously():
    allow_camera("granted")
    at("camera").click()
    until("a cat", lambda: labels()[0] == "cat")
    until("the rate", lambda: float(at("rate").text) > 1)
    figure = page.find_element(By.CSS_SELECTOR, "#fps .now b")
    seen = set()
    until("the counter moves", lambda: seen.add(figure.text) or len([text for text in seen if float(text) > 0]) > 1)
    until("percentiles", lambda: float(page.find_element(By.CSS_SELECTOR, "#latency b").text) > 0)
    lines = page.find_elements(By.CSS_SELECTOR, "#latency path.line")
    until("lines", lambda: all("L" in line.get_attribute("d") for line in lines))
    check_layout()


def test_the_keyboard_reaches_all_controls_and_the_focus_is_visible():
    page.execute_script("document.activeElement.blur(); window.getSelection().removeAllRanges()")
    page.execute_script("document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex')")
    reached = []
    for _ in range(12):
        webdriver.ActionChains(page).send_keys(Keys.TAB).perform()
        focused = page.switch_to.active_element
        name = focused.get_attribute("id") or focused.get_attribute("name") or focused.text
        if name in reached or focused.tag_name == "body":
            break
        reached.append(name)
        outlined = page.execute_script("""
            const [element] = arguments;
            const shown = element.matches(".unseen") ? element.nextElementSibling : element;
            const { outlineStyle, outlineWidth } = getComputedStyle(shown);
            return outlineStyle !== "none" && parseFloat(outlineWidth) >= 2;
        """, focused)
        assert outlined, name
    assert reached == ["file", "camera", "stage", "/metrics", "/healthz", "/readyz"], reached

    page.execute_script("document.querySelector('[name=stage]').focus()")
    webdriver.ActionChains(page).send_keys(Keys.ARROW_DOWN).perform()
    until("another stage is drawn", lambda: "Queue" in page.find_element(By.CSS_SELECTOR, "#latency h3").text)
    page.execute_script("document.getElementById('camera').focus()")
    webdriver.ActionChains(page).send_keys(Keys.ENTER).perform()
    until("the camera is off", lambda: at("camera").text == "Use the camera" and not at("video").is_displayed())
    unnamed = page.execute_script("""
        return [...document.querySelectorAll("input, select, button")]
            .filter((control) => !(control.labels?.length || control.textContent.trim())).map((control) => control.outerHTML);
    """)
    assert unnamed == [], unnamed


def test_all_resources_come_from_the_server_and_the_security_policy_holds():
    names = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert any(name.endswith("/Classify") for name in names), names
    assert all(name.startswith((URL, f"blob:{URL}")) for name in names), names
    assert page.execute_script("return violations") == []
    assert page.get_log("browser") == []


def test_a_hanging_server_is_shown_until_it_answers_again():
    os.kill(PID, signal.SIGSTOP)
    try:
        until("it is gone", lambda: at("state").text == "not reachable" and "does not answer" in at("banner").text)
    finally:
        os.kill(PID, signal.SIGCONT)
    until("it is back", lambda: at("state").text == "ready" and not at("banner").is_displayed())
    choose(DATA / "photos/cat.jpg")
    until("a cat", lambda: labels()[0] == "cat")


def test_a_killed_server_is_shown():
    os.kill(PID, signal.SIGKILL)
    until("it is gone", lambda: at("state").text == "not reachable")
    choose(DATA / "photos/cat.jpg")
    until("the reason", lambda: "trying again" in at("trouble").text)
    show(375, "dark")
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    show(1440, "light")


def test_the_page_asks_for_a_token_and_keeps_it_in_the_tab():
    page.get(GUARDED)
    until("the question", lambda: at("token").is_displayed())
    until("the models by their metrics", lambda: "openvino" in at("model-list").text or "embedded" in at("model-list").text)
    at("token").send_keys("0123456789abcdef-wrong", Keys.ENTER)
    until("the refusal", lambda: at("token").is_displayed() and "not one that this server knows" in at("trouble").text)
    at("token").send_keys(TOKEN, Keys.ENTER)
    until("both models", lambda: at("model").is_displayed() and [o.text for o in at("model").find_elements(By.TAG_NAME, "option")] == ["one", "two"])
    choose(DATA / "photos/cat.jpg")
    until("a cat", lambda: labels()[0] == "cat")
    at("model").send_keys("two")
    until("a cat for the other model too", lambda: labels()[0] == "cat" and 'model="two"' in answered_requests())
    assert page.execute_script("return [localStorage.length, document.cookie, sessionStorage.token]") == [0, "", TOKEN]


def test_a_busy_server_is_shown_until_it_has_capacity():
    # The server accepts one call at a time, and the camera makes two.
    page.execute_cdp_cmd("Browser.setPermission", {"permission": {"name": "camera"}, "setting": "granted", "origin": GUARDED})
    at("camera").click()
    # The messages may change faster than this test can poll them, so the page records them.
    page.execute_script("""
        const trouble = document.getElementById("trouble");
        window.troubles = [trouble.textContent];
        new MutationObserver(() => window.troubles.push(trouble.textContent))
            .observe(trouble, {childList: true, characterData: true, subtree: true});
    """)
    seen = lambda: {text[:25] for text in page.execute_script("return window.troubles")}
    until("both", lambda: {"", "The server is overloaded;"} <= seen() and labels()[0] == "cat")
    at("camera").click()


browser.run_tests(globals(), ("banner", "trouble"))
