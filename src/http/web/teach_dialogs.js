// The dialogs of the tab Teach: a picture at its full size, and a question before something is removed.

import { explain } from "./teach_calls.js";

const at = (id) => document.getElementById(id);

/** Makes an element with these properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Makes a button; `press` is called when it is pressed. */
export function button(text, press, properties = {}) {
  const element = make("button", { type: "button", className: "button", textContent: text, ...properties });
  element.addEventListener("click", press);
  return element;
}

/** "1 picture", "2 pictures". */
export const counted = (count, word = "picture") => `${count} ${word}${count === 1 ? "" : word === "class" ? "es" : "s"}`;

/** Asks whether to do something; resolves to whether the user wants it. */
export function confirmed(question, yes) {
  const dialog = at("ask");
  const no = button("Cancel", () => dialog.close("no"), { autofocus: true });
  const row = make("div", { className: "row" }, no, button(yes, () => dialog.close("yes"), { className: "button danger" }));
  dialog.replaceChildren(make("p", { id: "ask-text", textContent: question }), row);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/**
 * Shows pictures at their full size, beginning with one. `caption` says what a picture is, and `remove` removes it; it
 * rejects with the reason if that fails.
 */
export function view(pictures, first, { caption, remove }) {
  const dialog = at("viewer");
  const shown = [...pictures];
  let place = Math.max(0, shown.indexOf(first));
  let url = null;
  let number = 0;
  const image = make("img", { alt: "" });
  const text = make("p", { id: "viewer-caption" });
  const trouble = make("p", { className: "trouble", hidden: true, role: "alert" });
  const step = (by) => show((place + by + shown.length) % shown.length);
  const back = button("Previous", () => step(-1));
  const next = button("Next", () => step(1), { autofocus: true });
  const gone = button("Remove", async () => {
    gone.disabled = true;
    try {
      await remove(shown[place]);
      shown.splice(place, 1);
      if (shown.length) show(place % shown.length);
      else dialog.close();
    } catch (error) {
      fail(explain(error));
    } finally {
      gone.disabled = false;
    }
  }, { className: "button danger" });
  const close = button("Close", () => dialog.close());

  function fail(message) {
    trouble.textContent = message;
    trouble.hidden = false;
  }

  async function show(index) {
    const mine = ++number;
    place = index;
    const picture = shown[place];
    trouble.hidden = true;
    text.textContent = `${caption(picture)} · ${place + 1} of ${shown.length}`;
    back.hidden = next.hidden = shown.length < 2;
    // The thumbnail stands in until the picture is there.
    image.src = picture.url ?? "";
    image.hidden = !picture.url;
    image.alt = caption(picture);
    try {
      const content = await picture.content();
      if (mine !== number) return;
      if (url) URL.revokeObjectURL(url);
      url = URL.createObjectURL(content);
      image.src = url;
      image.hidden = false;
      await image.decode();
    } catch (error) {
      if (mine !== number) return;
      image.hidden = true;
      fail(error.name === "EncodingError" ? "This browser can't show this picture; the server can read it." : explain(error));
    }
  }

  dialog.replaceChildren(make("div", { className: "frame" }, image), text, trouble,
    make("div", { className: "row" }, back, next, gone, close));
  const keys = ({ key }) => {
    if (key === "ArrowLeft") step(-1);
    if (key === "ArrowRight") step(1);
    if (key === "Delete") gone.click();
  };
  dialog.addEventListener("keydown", keys);
  dialog.addEventListener("close", () => {
    number += 1;
    dialog.removeEventListener("keydown", keys);
    if (url) URL.revokeObjectURL(url);
    dialog.replaceChildren();
  }, { once: true });
  show(place);
  dialog.showModal();
}
