"""Tests of the tab Teach of the page at / in a real Chromium.

Arguments: the URL and process id of a server with --teach; the URL of a second one, which requires a token, and that token; a
folder for the browser's files.
"""

import base64
import os
import pathlib
import signal
import sys
import time

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from chromium import PHOTOS, Page, alternating_video, pictures_of

URL, PID, GUARDED, TOKEN, FOLDER = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], pathlib.Path(sys.argv[5])
# How long one photo is in front of the camera, in seconds.
TURN = 6
# The server's flag --teach-pictures.
MOST_PICTURES = 40

page = Page(FOLDER, alternating_video(FOLDER / "camera.mjpeg", [PHOTOS / "dolphin.jpg", PHOTOS / "pizza.jpg"], TURN))
at, until, run = page.at, page.until, page.run

# A script that finds the mean colour of a picture.
MEAN = """
    const draw = (source, left, top, width, height) => {
        const canvas = Object.assign(document.createElement("canvas"), {width: 8, height: 8});
        const context = canvas.getContext("2d");
        context.drawImage(source, left, top, width, height, 0, 0, 8, 8);
        const sums = [0, 0, 0];
        context.getImageData(0, 0, 8, 8).data.forEach((value, i) => i % 4 < 3 && (sums[i % 4] += value / 64));
        return sums;
    };
"""


def open_tab(url=URL):
    page.driver.get(f"{url}/#teach")
    # Without this, only the fragment may change.
    page.driver.refresh()
    until("the tab", lambda: at("teach").is_displayed() and at("tab-teach").get_attribute("aria-selected") == "true")


def create(name):
    until("the models", lambda: at("dataset-new").is_displayed() or at("dataset-name").is_displayed())
    if not at("dataset-name").is_displayed():
        at("dataset-new").click()
    at("dataset-name").send_keys(name, Keys.ENTER)
    until("the dataset", lambda: at("lesson").is_displayed() and at("dataset").get_attribute("value") == name)


def add_class(name):
    at("class-name").clear()
    at("class-name").send_keys(name, Keys.ENTER)
    return until("the card", lambda: card(name))


def card(name):
    """The card of a class; None if there is none."""
    return next((one for one in page.all(".card") if one.find_element(By.TAG_NAME, "h3").text == name), None)


def inside(name, selector):
    return card(name).find_elements(By.CSS_SELECTOR, selector)


def kept(name):
    return len(inside(name, "li[data-state=kept]"))


def count(name):
    return int(inside(name, ".head p")[0].text.split()[0])


def labels():
    return [label.text for label in page.all("#answers .label")]


def seen_by_camera():
    """Which photo is in front of the camera: the one whose warmth is nearer. A dolphin in water is blue, a pizza is red."""
    red, _, blue = run(MEAN + """
        const video = document.getElementById("video");
        return draw(video, 0, 0, video.videoWidth, video.videoHeight);
    """)
    return "pizza" if red - blue > THRESHOLD else "dolphin"


def warmth(photo):
    """How much redder than blue a photo is."""
    encoded = base64.b64encode((PHOTOS / photo).read_bytes()).decode()
    red, _, blue = page.driver.execute_async_script(MEAN + """
        const [encoded, done] = arguments;
        const image = new Image();
        image.onload = () => done(draw(image, 0, 0, image.naturalWidth, image.naturalHeight));
        image.src = URL.createObjectURL(new Blob([Uint8Array.from(atob(encoded), (char) => char.charCodeAt(0))]));
    """, encoded)
    return red - blue


def take(name, press, release):
    """Holds the button while the camera sees what the class is called, until there are enough pictures."""
    for _ in range(5):
        until(f"a {name} in front of the camera", lambda: seen_by_camera() == name)
        button = inside(name, ".hold")[0]
        # Within the page, so that no picture of the other thing is taken while this program waits for its turn.
        run(MEAN + """
            const [button, wanted, threshold] = arguments;
            const video = document.getElementById("video");
            const watch = setInterval(() => {
                const [red, , blue] = draw(video, 0, 0, video.videoWidth, video.videoHeight);
                if ((red - blue > threshold ? "pizza" : "dolphin") === wanted) return;
                clearInterval(watch);
                button.dispatchEvent(new FocusEvent("blur"));
            }, 30);
        """, button, name, THRESHOLD)
        press(button)
        until("pictures", lambda: kept(name) >= 12 or seen_by_camera() != name)
        release(button)
        if kept(name) >= 12:
            break
    assert kept(name) >= 12, card(name).text
    until("all have arrived", lambda: not inside(name, "li[data-state=sending]"))


def train(seconds=180):
    until("it can be trained", lambda: at("train").is_enabled())
    at("train").click()
    until("it is trained", lambda: at("train").is_enabled() and at("result").is_displayed() and "of" in at("result").text, seconds)
    assert not at("train-trouble").is_displayed(), at("train-trouble").text


def test_two_classes_are_taught_from_the_camera_and_recognised_live():
    global THRESHOLD
    page.allow_camera(URL)
    page.driver.get(URL)
    until("the tab is offered", lambda: at("tab-teach").is_displayed())
    at("tab-teach").click()
    THRESHOLD = (warmth("dolphin.jpg") + warmth("pizza.jpg")) / 2
    assert warmth("pizza.jpg") - warmth("dolphin.jpg") > 100
    create("lunch")
    assert at("missing").text == "Add two classes to begin." and not at("train").is_enabled()
    add_class("dolphin")
    assert at("missing").text == "Add a second class. “dolphin” needs 10 more pictures."
    page.check_widths("empty")

    # The button starts the camera by itself.
    inside("dolphin", ".hold")[0].click()
    until("the camera", lambda: at("video").is_displayed() and run("return document.getElementById('video').videoWidth"))
    until("a picture", lambda: kept("dolphin") == 1)
    run("arguments[0].click()", inside("dolphin", ".cross")[0])
    until("it is removed", lambda: kept("dolphin") == 0)

    mouse = lambda button: webdriver.ActionChains(page.driver).move_to_element(button).click_and_hold().perform()
    take("dolphin", mouse, lambda _: webdriver.ActionChains(page.driver).release().perform())
    add_class("pizza")

    def hold_space(button):
        run("arguments[0].focus()", button)
        webdriver.ActionChains(page.driver).key_down(Keys.SPACE).perform()
    take("pizza", hold_space, lambda _: webdriver.ActionChains(page.driver).key_up(Keys.SPACE).perform())

    train()
    assert "“lunch” is served" in at("result").text
    assert int(page.all(".score b")[0].text.split()[0]) >= 80, at("result").text
    assert at("model").get_attribute("value") == "lunch"
    for thing in ("dolphin", "pizza", "dolphin"):
        until(f"a {thing} is recognised", lambda: seen_by_camera() == thing and labels()[0] == thing)
    page.check_widths("taught")
    at("camera").click()


def test_folders_are_dropped_and_become_classes():
    open_tab()
    create("animals")
    things = FOLDER / "things"
    for name in ("dolphin", "leopard"):
        pictures_of(PHOTOS / f"{name}.jpg", things / "train" / name, 12)
    (things / "train/dolphin/notes.txt").write_text("no picture")
    (things / "train/leopard/broken.jpg").write_bytes((things / "train/leopard/01.jpg").read_bytes()[:900])
    page.drop([things], at("add-title"))
    until("both classes", lambda: card("dolphin") and card("leopard"))
    until("all pictures", lambda: (count("dolphin"), count("leopard")) == (12, 12))
    until("the file that is no picture", lambda: "1 file was left out" in at("teach-trouble").text)
    trouble = lambda: inside("leopard", ".trouble")[0].text
    until("the broken picture is told", lambda: "1 picture not kept (broken.jpg)" in trouble())
    page.check_widths("trouble")
    inside("leopard", ".trouble .button")[1].click()
    until("it is left out", lambda: not inside("leopard", ".trouble")[0].is_displayed())

    # Single photos, dropped on a class: what is there already is not kept twice.
    others = pictures_of(PHOTOS / "dolphin.jpg", FOLDER / "dolphins", 15)
    page.drop([others / "13.jpg", others / "14.jpg", things / "train/dolphin/03.jpg"], inside("dolphin", "h3")[0])
    until("two more", lambda: count("dolphin") == 14 and not inside("dolphin", "li[data-state=sending]"))


def test_pictures_are_looked_at_and_removed_also_after_a_reload():
    open_tab()
    until("the dataset", lambda: at("lesson").is_displayed() and card("dolphin") is not None and count("dolphin") == 14)
    assert at("dataset").get_attribute("value") == "animals"
    image = lambda name: inside(name, ".thumb img")
    until("thumbnails", lambda: all(one.get_attribute("naturalWidth") == "160" for one in image("dolphin")))

    # One goes in the large view and one by the keyboard.
    inside("dolphin", ".thumb")[0].click()
    until("the large view", lambda: "dolphin · 1 of 14" in at("viewer").text)
    large = lambda: page.all("#viewer img")[0]
    until("the picture", lambda: large().get_attribute("naturalWidth") == "360")
    page.check_widths("viewer")
    webdriver.ActionChains(page.driver).send_keys(Keys.ARROW_RIGHT).perform()
    until("the next one", lambda: "2 of 14" in at("viewer").text)
    next(one for one in page.all("#viewer button") if one.text == "Remove").click()
    until("one less", lambda: count("dolphin") == 13 and "2 of 13" in at("viewer").text)
    webdriver.ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    until("it is closed", lambda: not at("viewer").is_displayed())
    run("arguments[0].focus()", inside("dolphin", ".thumb")[0])
    webdriver.ActionChains(page.driver).send_keys(Keys.ARROW_RIGHT, Keys.DELETE).perform()
    until("another one less", lambda: count("dolphin") == 12)
    assert page.driver.switch_to.active_element.get_attribute("class") == "thumb", "the focus stays in the list"


def test_a_picture_that_is_removed_while_it_is_sent_leaves_its_twin():
    # The server has this one already, under another tile.
    os.kill(PID, signal.SIGSTOP)
    try:
        page.drop([FOLDER / "things/train/leopard/05.jpg"], inside("leopard", "h3")[0])
        sending = lambda: inside("leopard", "li[data-state=sending] .thumb")
        until("it is on its way", sending)
        time.sleep(1)
        run("arguments[0].focus()", sending()[0])
        webdriver.ActionChains(page.driver).send_keys(Keys.DELETE).perform()
        until("it is gone", lambda: not sending())
    finally:
        os.kill(PID, signal.SIGCONT)
    until("all is sent", lambda: not at("progress").is_displayed())
    open_tab()
    until("the twin", lambda: card("leopard") is not None and count("leopard") == 12)


def test_nothing_is_lost_while_the_server_hangs_and_limits_are_told():
    more = pictures_of(PHOTOS / "grand_piano.jpg", FOLDER / "pianos", 45)
    add_class("piano")
    os.kill(PID, signal.SIGSTOP)
    try:
        inside("piano", ".files")[0].send_keys("\n".join(str(path) for path in sorted(more.iterdir())))
        until("the progress", lambda: at("progress").is_displayed() and at("progress-note").text == "0 of 45 pictures")
        time.sleep(2)
    finally:
        os.kill(PID, signal.SIGCONT)
    until("all are sent", lambda: not at("progress").is_displayed(), 180)
    assert count("piano") == MOST_PICTURES
    assert "5 pictures not kept" in inside("piano", ".trouble")[0].text
    assert "--teach-pictures" in inside("piano", ".trouble")[0].text
    more_button = next(one for one in inside("piano", ".quiet") if "Show all" in one.text)
    more_button.click()
    until("all are shown", lambda: kept("piano") == MOST_PICTURES)
    inside("piano", ".head button")[0].click()
    until("the question", lambda: at("ask").is_displayed())
    page.check_widths("question")
    next(one for one in page.all("#ask button") if one.text == "Remove").click()
    until("the class is gone", lambda: card("piano") is None)


def test_dropped_pictures_are_learned_and_the_model_is_downloaded():
    at("add-none").click()
    until("the class of the background", lambda: card("nothing of these") is not None)
    assert not at("add-none").is_displayed()
    assert at("missing").text == "“nothing of these” needs 10 more pictures."
    folder = pictures_of(PHOTOS / "umbrella.jpg", FOLDER / "background", 12)
    # Pictures of a folder go to the class that it is dropped on.
    page.drop([folder], inside("nothing of these", "h3")[0])
    until("its pictures", lambda: count("nothing of these") == 12)
    # A wrong one, which is found.
    page.drop([FOLDER / "dolphins/15.jpg"], inside("leopard", "h3")[0])
    until("the wrong picture", lambda: count("leopard") == 13)
    train()
    text = at("result").text
    assert "36 of 37 pictures" in text and "It gets 1 picture wrong" in text and "1 taken for dolphin" in text, text
    until("its thumbnail", lambda: page.all(".mistakes img")[0].get_attribute("naturalWidth") == "160")
    page.check_widths("result")
    page.all(".mistakes .thumb")[0].click()
    until("it is shown", lambda: "leopard, taken for dolphin" in at("viewer").text)
    next(one for one in page.all("#viewer button") if one.text == "Remove").click()
    until("it is removed", lambda: count("leopard") == 12 and not at("viewer").is_displayed())
    train()
    assert "36 of 36 pictures" in at("result").text, at("result").text

    at("file").send_keys(str(PHOTOS / "leopard.jpg"))
    until("a leopard", lambda: labels()[0] == "leopard")
    at("file").send_keys(str(PHOTOS / "umbrella.jpg"))
    until("nothing of these", lambda: labels()[0] == "nothing of these")

    downloads = FOLDER / "downloads"
    downloads.mkdir()
    page.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
    at("download").click()
    until("the file", lambda: (downloads / "animals.onnx").exists())
    served = (FOLDER / "taught/animals.onnx").read_bytes()
    until("all of it", lambda: (downloads / "animals.onnx").read_bytes() == served)
    page.driver.refresh()
    until("the model after a reload", lambda: "It was learned from 36 pictures" in at("result").text)
    assert at("train").text == "Train again"


def test_the_keyboard_reaches_everything_and_all_is_named():
    run("document.getElementById('tab-teach').focus()")
    reached = []
    for _ in range(40):
        webdriver.ActionChains(page.driver).send_keys(Keys.TAB).perform()
        focused = page.driver.switch_to.active_element
        outlined = run("""
            const [element] = arguments;
            const shown = element.matches(".unseen") ? element.nextElementSibling : element;
            const { outlineStyle, outlineWidth } = getComputedStyle(shown);
            return outlineStyle !== "none" && parseFloat(outlineWidth) >= 2;
        """, focused)
        name = focused.get_attribute("id") or focused.get_attribute("aria-label") or focused.text
        assert outlined, name
        reached.append(name)
        if name == "/metrics":
            break
    for name in ("dataset", "dataset-new", "dataset-remove", "Remove the class dolphin", "Hold to take pictures", "Picture 1 of 12",
                 "class-name", "folders", "train", "download"):
        assert name in reached, (name, reached)
    unnamed = run("""
        return [...document.querySelectorAll("input, select, button")].filter((control) => control.checkVisibility()
            && !(control.labels?.length || control.ariaLabel || control.textContent.trim())).map((control) => control.outerHTML);
    """)
    assert unnamed == [], unnamed
    run("document.getElementById('tab-teach').focus()")
    webdriver.ActionChains(page.driver).send_keys(Keys.ARROW_LEFT).perform()
    until("the other tab", lambda: at("live").is_displayed() and not at("teach").is_displayed())


def test_a_dataset_is_removed_with_its_model():
    open_tab()
    until("the datasets", lambda: at("dataset-remove").is_displayed() and at("result").is_displayed())
    at("dataset-remove").click()
    until("the question", lambda: "animals" in at("ask").text)
    next(one for one in page.all("#ask button") if one.text == "Remove").click()
    until("the other dataset", lambda: at("dataset").get_attribute("value") == "lunch")
    until("the model is gone", lambda: "animals" not in at("model").text)
    assert not (FOLDER / "taught/animals.onnx").exists() and not (FOLDER / "taught/animals").exists()


def test_the_security_policy_holds():
    assert run("return violations") == []
    # While the server was stopped, its state was asked for in vain.
    log = [entry for entry in page.driver.get_log("browser") if "net::ERR" not in entry["message"]]
    assert log == [], log


def test_a_server_with_tokens_is_taught_with_one():
    page.driver.get(f"{GUARDED}/#teach")
    until("the question", lambda: at("token").is_displayed() and "requires a token" in at("teach-token").text)
    page.check_widths("token")
    at("token").send_keys(TOKEN, Keys.ENTER)
    create("guarded")
    at("folders").send_keys(str(FOLDER / "things/train"))
    until("both classes", lambda: card("dolphin") and card("leopard"))
    until("all pictures", lambda: (count("dolphin"), count("leopard")) == (12, 12))
    assert not at("teach-token").is_displayed()
    train()
    assert "“guarded” is served" in at("result").text
    at("file").send_keys(str(PHOTOS / "dolphin.jpg"))
    until("a dolphin", lambda: labels()[0] == "dolphin" and at("model").get_attribute("value") == "guarded")


page.run_tests(globals(), ("banner", "trouble", "teach-trouble", "train-trouble", "missing", "cards", "result"))
