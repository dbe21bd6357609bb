// The card of one class: its pictures, and the ways to add more.

import { NONE } from "./calls.js";
import { button, confirmed, counted, make, view } from "./teach_dialogs.js";
import { explain, remove } from "./teach_calls.js";
import { dropped } from "./teach_drop.js";
import { Shutter } from "./teach_take.js";
import { camera } from "./try.js";

/** How many pictures a class needs. */
export const ENOUGH = 10;
/** How many thumbnails are shown until the user asks for all. */
const SHOWN = 24;
let nextId = 0;

export class Card {
  /** `taking` gets whether pictures are being taken, `receive` files for this card, and `gone` the card when it was removed. */
  constructor(pictures, name, { taking, gone, receive }) {
    Object.assign(this, { pictures, name, gone });
    this.tiles = new Map();
    this.showsAll = false;
    const id = `class-${nextId++}`;
    this.title = make("h3", { id, textContent: name });
    this.count = make("p", { className: "muted" });
    this.fill = make("i");
    this.bar = make("div", { className: "bar", ariaHidden: "true" }, this.fill);
    const away = button("Remove", () => this.removeClass(), { className: "button quiet", ariaLabel: `Remove the class ${name}` });
    this.finder = make("video", { className: "finder", muted: true, playsInline: true, hidden: true, ariaHidden: "true" });
    this.shutter = button("Hold to take pictures", () => {}, { className: "button primary hold" });
    this.shutter.setAttribute("aria-describedby", id);
    const input = make("input", { type: "file", id: `${id}-files`, className: "unseen files", multiple: true, accept: "image/*" });
    input.setAttribute("aria-describedby", id);
    input.addEventListener("change", () => {
      receive([...input.files].map((file) => ({ folder: "", file })), this);
      input.value = "";
    });
    const add = make("label", { className: "button", htmlFor: input.id, textContent: "Add photos" });
    this.trouble = make("div", { className: "trouble", role: "alert", hidden: true });
    this.list = make("ul", { className: "thumbs", ariaLabel: `Pictures of ${name}` });
    this.hint = make("p", { className: "hint muted",
      textContent: name === NONE ? "The background without any of your things: hold the button, or drop photos here."
        : "Hold the button and turn the thing a little, or drop photos here." });
    this.more = button("", () => {
      this.showsAll = true;
      this.update();
    }, { className: "button quiet", hidden: true });
    this.element = make("section", { className: "panel card" },
      make("div", { className: "head" }, this.title, this.count, away), this.bar,
      make("div", { className: "ways" }, this.shutter, input, add), this.finder, this.trouble, this.list, this.hint, this.more);
    this.element.setAttribute("aria-labelledby", id);
    this.seen = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) if (isIntersecting) this.pictures.want(target.picture);
    });
    new Shutter(this.shutter, {
      take: (picture) => this.pictures.add(name, [picture]),
      waiting: () => this.pictures.waiting,
      told: (problem) => this.tell("shutter", problem),
      active: (isActive) => {
        this.shutter.classList.toggle("on", isActive);
        this.preview(isActive);
        taking(isActive);
      },
    });
    this.list.addEventListener("keydown", (event) => this.key(event));
    this.acceptDrops(receive);
    this.problems = new Map();
    this.update();
  }

  /** Shows the camera's picture in the card, for narrow windows where the other preview is out of sight. */
  preview(isShown) {
    this.finder.hidden = !isShown;
    this.finder.srcObject = isShown ? camera.stream : null;
    // A preview that can't be played is only missing.
    if (isShown) this.finder.play().catch(() => {});
  }

  acceptDrops(receive) {
    const { element } = this;
    element.addEventListener("dragover", () => element.classList.add("over"));
    element.addEventListener("dragleave", ({ relatedTarget }) => element.contains(relatedTarget) || element.classList.remove("over"));
    element.addEventListener("drop", async (event) => {
      event.preventDefault();
      event.stopPropagation();
      element.classList.remove("over");
      receive(await dropped(event.dataTransfer), this);
    });
  }

  /** Shows a problem, or removes it, which each kind has one of. */
  tell(kind, problem) {
    if ((this.problems.get(kind) ?? null) === problem) return;
    if (problem) this.problems.set(kind, problem);
    else this.problems.delete(kind);
    this.update();
  }

  /** Shows the pictures as they are now. */
  update() {
    const all = this.pictures.of(this.name);
    const kept = all.filter((picture) => picture.isKept).length;
    this.count.textContent = kept < ENOUGH ? `${kept} of ${ENOUGH} pictures` : counted(kept);
    this.fill.style.transform = `scaleX(${Math.min(1, kept / ENOUGH)})`;
    this.bar.hidden = kept >= ENOUGH;
    this.hint.hidden = all.length > 0;
    this.updateTiles(all);
    this.updateTrouble(all);
  }

  updateTiles(all) {
    const shown = this.showsAll ? all : all.slice(0, SHOWN);
    const wanted = new Set(shown);
    for (const [picture, tile] of this.tiles) {
      if (wanted.has(picture)) continue;
      this.forgetTile(tile);
      this.tiles.delete(picture);
    }
    shown.forEach((picture, i) => {
      if (!this.tiles.has(picture)) this.tiles.set(picture, this.tile(picture));
      const tile = this.tiles.get(picture);
      if (this.list.children[i] !== tile) this.list.insertBefore(tile, this.list.children[i] ?? null);
      this.updateTile(tile, i, all.length);
    });
    this.more.hidden = shown.length === all.length;
    this.more.textContent = `Show all ${all.length}`;
  }

  tile(picture) {
    const image = make("img", { alt: "", draggable: false });
    const open = button("", () => this.open(picture), { className: "thumb" });
    open.append(image);
    // For the mouse: the key Delete and the large view do the same.
    const cross = button("×", () => this.removePicture(picture).catch((error) => this.tell("remove", explain(error))),
      { className: "cross", tabIndex: -1, ariaHidden: "true", title: "Remove" });
    const tile = Object.assign(make("li", {}, open, cross), { picture });
    this.seen.observe(tile);
    return tile;
  }

  updateTile(tile, i, count) {
    const { picture } = tile;
    const [open, cross] = tile.children;
    const image = open.firstChild;
    if (picture.url && image.src !== picture.url) image.src = picture.url;
    image.hidden = !picture.url;
    open.classList.toggle("bare", picture.hasNoThumbnail);
    tile.dataset.state = picture.isKept ? "kept" : picture.problem ? "failed" : "sending";
    const state = picture.isKept ? "" : picture.problem ? ", not kept" : ", on its way";
    open.ariaLabel = `Picture ${i + 1} of ${count}${state}`;
    open.tabIndex = (this.current ?? this.pictures.of(this.name)[0]) === picture ? 0 : -1;
    cross.hidden = !picture.isKept && !picture.problem;
  }

  forgetTile(tile) {
    this.seen.unobserve(tile);
    // The focus stays in the list.
    if (tile.contains(document.activeElement)) {
      const near = tile.nextElementSibling ?? tile.previousElementSibling;
      this.current = near?.picture;
      (near?.firstChild ?? this.shutter).focus();
    }
    if (this.current === tile.picture) this.current = undefined;
    tile.remove();
  }

  key(event) {
    const tile = event.target.closest("li");
    if (!tile) return;
    const to = { ArrowRight: tile.nextElementSibling, ArrowLeft: tile.previousElementSibling,
      Home: this.list.firstElementChild, End: this.list.lastElementChild }[event.key];
    if (event.key === "Delete") this.removePicture(tile.picture).catch((error) => this.tell("remove", explain(error)));
    if (!to) return;
    event.preventDefault();
    this.current = to.picture;
    for (const { firstChild, picture } of this.list.children) firstChild.tabIndex = picture === this.current ? 0 : -1;
    to.firstChild.focus();
  }

  open(picture) {
    view(this.pictures.of(this.name), picture, {
      caption: ({ className }) => className,
      remove: (picture) => this.removePicture(picture),
    });
  }

  async removePicture(picture) {
    if (picture.isKept) await remove(picture.dataset, picture.className, [picture.name]);
    this.pictures.drop(picture);
  }

  async removeClass() {
    const count = this.pictures.kept(this.name).length;
    const question = `Remove “${this.name}” with its ${counted(count)}? This can't be undone.`;
    if (this.pictures.of(this.name).length && !(await confirmed(question, "Remove"))) return;
    try {
      if (count) await remove(this.pictures.dataset, this.name);
    } catch (error) {
      this.tell("remove", explain(error));
      return;
    }
    this.seen.disconnect();
    this.pictures.dropClass(this.name);
    this.element.remove();
    this.gone(this);
  }

  updateTrouble(all) {
    const failed = all.filter((picture) => picture.problem);
    const reasons = new Map();
    for (const { problem, title } of failed) reasons.set(problem, [...(reasons.get(problem) ?? []), title]);
    const lines = [...this.problems.values(), ...[...reasons].map(([reason, titles]) => {
      const named = titles.filter(Boolean).slice(0, 3).join(", ");
      return `${counted(titles.length)} not kept${named ? ` (${named}${titles.length > 3 ? ", …" : ""})` : ""}: ${reason}`;
    })];
    const text = lines.join("\n");
    this.trouble.hidden = !text;
    if (this.trouble.dataset.text === text) return;
    this.trouble.dataset.text = text;
    this.trouble.replaceChildren(...lines.map((line) => make("p", { textContent: line })));
    if (!failed.length) return;
    const row = make("div", { className: "row" }, button("Try again", () => this.pictures.again(this.name), { className: "button small" }),
      button("Leave them out", () => failed.forEach((picture) => picture.isKept || this.pictures.drop(picture)), { className: "button small" }));
    this.trouble.append(row);
  }
}
