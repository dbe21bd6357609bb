// Pictures as this browser draws them: JPEGs of photos, and thumbnails.

const QUALITY = 0.95;
/** The width and height of a thumbnail, in pixels. */
const THUMBNAIL = 160;

/** Calls `draw` with an image of the file. Null if this browser can't show it. */
async function withImage(file, draw) {
  const url = URL.createObjectURL(file);
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    return await draw(image);
  } catch {
    return null;
  } finally {
    URL.revokeObjectURL(url);
  }
}

const jpeg = (canvas, quality) => new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", quality));

function canvas(width, height) {
  const element = Object.assign(document.createElement("canvas"), { width, height });
  const context = element.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  return [element, context];
}

/** A photo as a JPEG on white, with at most this longest side. Null if this browser can't show the file. */
export const toJpeg = (file, longest) => withImage(file, (image) => {
  const { naturalWidth: width, naturalHeight: height } = image;
  const scale = Math.min(1, longest / Math.max(width, height));
  const [element, context] = canvas(...[width, height].map((side) => Math.max(1, Math.round(side * scale))));
  context.drawImage(image, 0, 0, element.width, element.height);
  return jpeg(element, QUALITY);
});

/** The middle of a picture as a small square, as a URL. Null if this browser can't show it. */
export const thumbnail = (file) => withImage(file, async (image) => {
  const { naturalWidth: width, naturalHeight: height } = image;
  const side = Math.min(width, height);
  const [element, context] = canvas(THUMBNAIL, THUMBNAIL);
  context.drawImage(image, (width - side) / 2, (height - side) / 2, side, side, 0, 0, THUMBNAIL, THUMBNAIL);
  const small = await jpeg(element, 0.8);
  return small && URL.createObjectURL(small);
});
