// The camera: sends its newest picture as a small JPEG, with at most two calls in flight.

const IN_FLIGHT = 2;
const QUALITY = 0.9;

/** An error message that tells the user what to do. */
function explain(error) {
  switch (error.name) {
    case "NotAllowedError":
      return "The camera was not allowed. Allow it for this page in the browser's address bar, then try again.";
    case "NotFoundError":
    case "OverconstrainedError":
      return "No camera was found. Connect one and try again, or choose a photo.";
    case "NotReadableError":
      return "The camera can't be read; another program may be using it.";
    default:
      return `The camera can't be used: ${error.message}`;
  }
}

export class Camera {
  /** Previews in `video`; `send` gets each picture and resolves when it has been answered. */
  constructor(video, send) {
    Object.assign(this, { video, send });
    this.canvas = document.createElement("canvas");
    this.stream = null;
    this.inFlight = 0;
    /** Whether pictures are not sent for now. */
    this.isPaused = false;
    /** The shorter side that the model needs, in pixels. */
    this.shorterSide = 256;
    this.onEnded = () => {};
  }

  get isOn() {
    return this.stream !== null;
  }

  /** Asks for the camera and starts it. Throws an Error whose message is for the user. */
  async start() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("Browsers allow the camera only on pages from https or from this machine. Choose a photo instead.");
    }
    const wanted = { video: { facingMode: { ideal: "environment" }, width: { ideal: 640 }, frameRate: { ideal: 30 } } };
    try {
      this.stream = await navigator.mediaDevices.getUserMedia(wanted);
      this.video.srcObject = this.stream;
      await this.video.play();
    } catch (error) {
      this.stop();
      throw new Error(explain(error));
    }
    this.stream.getVideoTracks()[0].addEventListener("ended", () => {
      this.stop();
      this.onEnded("The camera stopped. Is it still connected?");
    });
    this.next();
  }

  stop() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = null;
    this.video.srcObject = null;
  }

  next() {
    const { stream, video } = this;
    const again = () => {
      if (this.stream !== stream || !stream) return;
      if (!this.isPaused && this.inFlight < IN_FLIGHT) this.take();
      this.next();
    };
    if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(again);
    else requestAnimationFrame(again);
  }

  /** The picture of this moment as a JPEG, scaled down to this shorter side; null if there is none. */
  async picture(shorterSide) {
    const { canvas, video } = this;
    const scale = Math.min(1, shorterSide / Math.min(video.videoWidth, video.videoHeight));
    canvas.width = Math.round(video.videoWidth * scale);
    canvas.height = Math.round(video.videoHeight * scale);
    if (!canvas.width || !canvas.height) return null;
    const context = canvas.getContext("2d", { alpha: false });
    context.imageSmoothingQuality = "high";
    context.drawImage(video, 0, 0, canvas.width, canvas.height);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
  }

  async take() {
    this.inFlight += 1;
    try {
      const picture = await this.picture(this.shorterSide);
      if (picture && this.isOn && !this.isPaused) await this.send(new Uint8Array(await picture.arrayBuffer()));
    } finally {
      this.inFlight -= 1;
    }
  }
}
