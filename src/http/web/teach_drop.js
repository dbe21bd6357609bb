// Photos and folders that are dropped or chosen, as files by the names of their classes.

/** The most files that are looked at in one drop. */
export const MOST_FILES = 5000;
const NAMES = /\.(jpe?g|png|webp|gif|bmp|tiff?|pnm|ppm|pgm|pbm|heic|heif|avif|qoi|ico|tga|svg)$/i;

const isPicture = (file) => file.type.startsWith("image/") || NAMES.test(file.name);
/** What file managers leave in folders. */
const isHidden = (name) => name.startsWith(".") || name === "Thumbs.db" || name === "__MACOSX";

/** Collects files as {folder, file}; `folder` is the name of the folder that holds it, "" if none does. */
class Found {
  constructor() {
    this.files = [];
    /** How many files were no pictures, and whether there were too many. */
    this.others = 0;
    this.isCut = false;
  }

  add(folder, file) {
    if (isHidden(file.name)) return;
    if (!isPicture(file)) this.others += 1;
    else if (this.files.length >= MOST_FILES) this.isCut = true;
    else this.files.push({ folder, file });
  }
}

const fileOf = (entry) => new Promise((resolve, reject) => entry.file(resolve, reject));

/** The entries of a folder, which browsers give in parts. */
async function* entriesOf(folder) {
  const reader = folder.createReader();
  for (;;) {
    const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!part.length) return;
    yield* part;
  }
}

async function walk(entry, folder, found) {
  if (found.isCut || isHidden(entry.name)) return;
  if (entry.isFile) {
    found.add(folder, await fileOf(entry));
    return;
  }
  for await (const inside of entriesOf(entry)) await walk(inside, entry.name, found);
}

/** The pictures that were dropped, also those in folders. */
export async function dropped({ items, files }) {
  const found = new Found();
  // Only valid until the first await.
  const entries = [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const loose = [...files];
  if (!entries.length) loose.forEach((file) => found.add("", file));
  for (const entry of entries) await walk(entry, "", found);
  return found;
}

/** The pictures of a folder that was chosen in a dialog. */
export function chosen(files) {
  const found = new Found();
  for (const file of files) {
    const folders = (file.webkitRelativePath || "").split("/").slice(0, -1);
    if (!folders.some(isHidden)) found.add(folders.at(-1) ?? "", file);
  }
  return found;
}

/** A folder's name by the rules for classes; null if nothing is left of it. */
export function className(folder) {
  const safe = folder.normalize("NFC").replace(/[^\p{Alphabetic}\p{N} _-]/gu, "_").replace(/^[^\p{Alphabetic}\p{N}]+|\s+$/gu, "");
  let name = safe;
  while (new TextEncoder().encode(name).length > 64) name = [...name].slice(0, -1).join("");
  return name.trim() || null;
}

/** What is wrong with a name; null if nothing is. */
export function nameProblem(name) {
  if (new TextEncoder().encode(name).length > 64) return "The name is too long; it may have 64 bytes.";
  if (/^[\p{Alphabetic}\p{N}][\p{Alphabetic}\p{N} _-]*$/u.test(name)) return null;
  return "A name begins with a letter or a digit and has letters, digits, dashes, underscores and spaces.";
}
