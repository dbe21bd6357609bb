// A button that takes pictures from the camera for as long as it is held.

import { camera, startCamera } from "./try.js";

/** The time from one picture to the next, in ms. */
const STEP = 250;
/** The shorter side of pictures, in pixels: more than models look at, and some 30 kB. */
const SHORTER_SIDE = 360;
/** How many pictures may be on their way before no more are taken. */
const MOST_ON_THEIR_WAY = 24;
/** How many pictures a click takes that is neither a press nor a key, such as a screen reader's. */
const BURST = 5;

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class Shutter {
  /**
   * Takes pictures while `button` is held: `take` gets each one, `waiting` says how many are on their way, and `told` gets
   * what is wrong (null if nothing is). `active` is called when it begins, with true, and when it ends.
   */
  constructor(button, { take, waiting, told, active }) {
    Object.assign(this, { button, take, waiting, told, active });
    this.isHeld = false;
    this.isRunning = false;
    /** How many pictures are taken even if the button is let go. */
    this.owed = 0;
    this.wasPressed = false;
    const press = () => {
      this.wasPressed = true;
      this.hold(1);
    };
    const release = () => (this.isHeld = false);
    button.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      button.setPointerCapture(event.pointerId);
      press();
    });
    for (const name of ["pointerup", "pointercancel", "lostpointercapture", "blur"]) button.addEventListener(name, release);
    // Neither of these is followed by a click.
    button.addEventListener("pointercancel", () => (this.wasPressed = false));
    button.addEventListener("keyup", (event) => {
      if (event.key !== " " && event.key !== "Enter") return;
      event.preventDefault();
      release();
      this.wasPressed = false;
    });
    button.addEventListener("keydown", (event) => {
      if (event.key !== " " && event.key !== "Enter") return;
      event.preventDefault();
      if (!event.repeat) press();
    });
    // Long presses on touch screens open a menu otherwise.
    button.addEventListener("contextmenu", (event) => event.preventDefault());
    button.addEventListener("click", () => {
      if (!this.wasPressed) this.hold(BURST).then(release);
      this.wasPressed = false;
    });
  }

  async hold(owed) {
    this.isHeld = owed === 1;
    this.owed = owed;
    if (this.isRunning) return;
    this.isRunning = true;
    try {
      await this.run();
    } finally {
      this.isRunning = false;
      this.active(false);
    }
  }

  async run() {
    this.told(null);
    if (!camera.isOn) {
      const problem = await startCamera();
      this.told(problem);
      if (problem) return;
      // The first picture of a camera may be dark; the question for the camera may have ended the press.
      await sleep(STEP);
    }
    this.active(true);
    while (this.isHeld || this.owed > 0) {
      const began = performance.now();
      const isBehind = this.waiting() >= MOST_ON_THEIR_WAY;
      this.told(isBehind ? "The server is behind; more pictures are taken as soon as it has caught up." : null);
      if (!isBehind) {
        const picture = await camera.picture(SHORTER_SIDE);
        if (picture) this.take(picture);
        this.owed -= 1;
      }
      await sleep(Math.max(50, STEP - (performance.now() - began)));
      if (!camera.isOn) return;
    }
    this.told(null);
  }
}
