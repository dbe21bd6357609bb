// The pictures of a class, on their way to the server and there: sending, thumbnails, removing.

import { Code } from "./calls.js";
import { thumbnail, toJpeg } from "./picture.js";
import { addPicture, explain, getPicture, remove } from "./teach_calls.js";
import { largestPhoto } from "./try.js";

/** How many pictures are sent at once, and how many thumbnails are fetched. */
const [SENDS, FETCHES] = [3, 2];
/** How often a picture is sent that the server has no time for, and the pause before it is sent again, in ms. */
const [ATTEMPTS, PAUSE] = [10, 1000];
/** The most pictures that wait to be sent. */
export const MOST_WAITING = 5000;
/** Larger files are sent as JPEGs with this longest side: far more than models look at. */
const [LARGE, LONGEST] = [1 << 20, 1280];

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Does work for at most `limit` items at once, the oldest or the newest first. */
class Line {
  constructor(limit, work, newestFirst = false) {
    Object.assign(this, { limit, work, newestFirst, waiting: [], busy: 0 });
  }

  add(item) {
    this.waiting.push(item);
    this.next();
  }

  /** Forgets the items that have not begun. */
  clear() {
    this.waiting = [];
  }

  async next() {
    if (this.busy >= this.limit || !this.waiting.length) return;
    this.busy += 1;
    await this.work(this.newestFirst ? this.waiting.pop() : this.waiting.shift());
    this.busy -= 1;
    this.next();
  }
}

/** A picture of a class: a file that is on its way, or one that the server has by `name`. */
class Picture {
  constructor(dataset, className, { name = null, file = null, title = "" }) {
    Object.assign(this, { dataset, className, name, file, title });
    /** The URL of its thumbnail; null if there is none (yet). */
    this.url = null;
    this.hasNoThumbnail = false;
    /** Why the server did not take it. */
    this.problem = null;
    this.isGone = false;
  }

  get isKept() {
    return this.name !== null;
  }

  /** The picture's content. */
  content() {
    return this.file ?? getPicture(this.dataset, this.className, this.name);
  }

  forget() {
    this.isGone = true;
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = null;
  }
}

/** The pictures of one dataset, by their classes. */
export class Pictures {
  /** `changed` is called with the name of a class whose pictures have changed. */
  constructor(dataset, changed) {
    Object.assign(this, { dataset, changed });
    this.classes = new Map();
    this.sends = new Line(SENDS, (picture) => this.send(picture));
    this.fetches = new Line(FETCHES, (picture) => this.fetch(picture), true);
    /** How many are on their way, and how many of these have arrived. */
    this.progress = { all: 0, done: 0 };
    /** Changes whenever the server has other pictures than before. */
    this.revision = 0;
  }

  /** The pictures of a class, the newest first. */
  of(className) {
    if (!this.classes.has(className)) this.classes.set(className, []);
    return this.classes.get(className);
  }

  kept(className) {
    return this.of(className).filter((picture) => picture.isKept);
  }

  get waiting() {
    return this.progress.all - this.progress.done;
  }

  /** Takes over what the server has. */
  known(className, names) {
    const list = this.of(className);
    const have = new Set(list.map((picture) => picture.name));
    list.push(...names.filter((name) => !have.has(name)).map((name) => new Picture(this.dataset, className, { name })));
    this.changed(className);
  }

  /** Sends these files to a class; returns how many there was no room for. */
  add(className, files) {
    const room = Math.max(0, MOST_WAITING - this.waiting);
    for (const file of files.slice(0, room)) {
      const picture = new Picture(this.dataset, className, { file, title: file.name ?? "" });
      this.of(className).unshift(picture);
      this.post(picture);
    }
    this.changed(className);
    return files.length - Math.min(files.length, room);
  }

  /** Sends those of a class again that were not kept. */
  again(className) {
    const failed = this.of(className).filter((picture) => picture.problem && !picture.isKept);
    failed.forEach((picture) => this.post(picture));
    this.changed(className);
  }

  post(picture) {
    picture.problem = null;
    this.progress.all += 1;
    this.sends.add(picture);
  }

  async send(picture) {
    if (!picture.isGone) {
      try {
        const { name, isNew } = await this.attempt(picture);
        if (!picture.isGone) this.arrived(picture, name);
        // One that the server had already stays: another tile shows it.
        else if (isNew) await remove(this.dataset, picture.className, [name]);
      } catch (error) {
        picture.problem = explain(error);
      }
    }
    this.progress.done += 1;
    if (!this.waiting) this.progress = { all: 0, done: 0 };
    this.changed(picture.className);
  }

  async attempt(picture) {
    let file = await small(picture.file);
    let converted = file !== picture.file;
    // A thumbnail from here saves fetching it; it is shown while the picture is on its way.
    if (!picture.url) picture.url = await thumbnail(file);
    picture.hasNoThumbnail = !picture.url;
    this.changed(picture.className);
    for (let attempt = 1; ; attempt++) {
      try {
        return await addPicture(this.dataset, picture.className, new Uint8Array(await file.arrayBuffer()));
      } catch (error) {
        const jpeg = error.code === Code.invalid && !converted ? await toJpeg(file, LONGEST) : null;
        converted = true;
        // The browser may be able to read what the server can't.
        if (jpeg && file.type !== "image/jpeg") file = jpeg;
        else if (error.isTransient && attempt < ATTEMPTS && !picture.isGone) await sleep(PAUSE);
        else throw error;
      }
    }
  }

  arrived(picture, name) {
    const list = this.of(picture.className);
    const twin = list.find((other) => other.name === name && other !== picture);
    // The server had it already.
    if (twin) {
      this.drop(picture);
      return;
    }
    picture.name = name;
    picture.file = null;
    this.revision += 1;
  }

  /** Asks for a picture's thumbnail. */
  want(picture) {
    if (picture.url || picture.hasNoThumbnail || picture.isAsked || !picture.isKept) return;
    picture.isAsked = true;
    this.fetches.add(picture);
  }

  async fetch(picture) {
    if (picture.isGone) return;
    try {
      const url = await thumbnail(await picture.content());
      if (picture.isGone && url) URL.revokeObjectURL(url);
      else picture.url = url;
      picture.hasNoThumbnail = !url;
    } catch {
      // It is asked for again when it is shown the next time.
      picture.isAsked = false;
    }
    this.changed(picture.className);
  }

  /** Takes a picture off the list. */
  drop(picture) {
    const list = this.of(picture.className);
    const at = list.indexOf(picture);
    if (at >= 0) list.splice(at, 1);
    if (picture.isKept) this.revision += 1;
    picture.forget();
    this.changed(picture.className);
  }

  /** Takes a class off the list. */
  dropClass(className) {
    this.of(className).forEach((picture) => picture.forget());
    this.revision += 1;
    this.classes.delete(className);
  }

  /** Forgets everything, also what has not been sent yet. */
  forget() {
    this.sends.clear();
    this.fetches.clear();
    for (const className of [...this.classes.keys()]) this.dropClass(className);
    this.changed = () => {};
  }
}

/** The file, or a smaller JPEG of it if it is large. Throws an Error with the reason if it can't be sent. */
async function small(file) {
  if (file.size > LARGE) {
    const jpeg = await toJpeg(file, LONGEST);
    if (jpeg && jpeg.size < file.size) return jpeg;
  }
  if (file.size > largestPhoto()) {
    const [has, takes] = [file.size, largestPhoto()].map((bytes) => (bytes / 2 ** 20).toFixed(1));
    throw new Error(`It has ${has} MiB, and this server takes ${takes} MiB.`);
  }
  return file;
}
