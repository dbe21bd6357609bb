// What a training came to: the accuracy, which classes are confused, and the pictures that were taken for another class.

import { button, counted, make, view } from "./teach_dialogs.js";
import { explain, getModel } from "./teach_calls.js";

/** How many wrong pictures are shown. */
const MOST_MISTAKES = 24;

const percent = (share) => {
  const value = share * 100;
  // Not "100 %" unless all were right.
  return `${value > 99 && value < 100 ? (Math.floor(value * 10) / 10).toFixed(1) : Math.round(value)} %`;
};

/** Fills `place` with a training's result, and lets the user download the model. */
export function showResult(place, result, { pictures, removePicture, look }) {
  const { model, accuracy, examples, classes, skipped, took } = result;
  const right = classes.reduce((sum, { right }) => sum + right, 0);
  place.replaceChildren(
    make("h2", { id: "result-title", textContent: `“${model}” is served` }),
    make("p", { className: "score" }, make("b", { textContent: percent(accuracy) }), " recognised"),
    make("p", { className: "muted", textContent:
      `${right} of ${counted(examples)} were recognised by a model that had not seen them. `
      + `Learned in ${(took / 1000).toFixed(1)}\u00a0s.` }),
    make("div", { className: "controls" }, button("See it live", look), download(model)),
    perClass(result),
  );
  place.refresh = () => {};
  const mistakes = mistaken(place, result, { pictures, removePicture });
  if (mistakes) place.append(...mistakes);
  if (skipped.length) {
    const first = skipped.slice(0, 3).map(({ picture, reason }) => `${picture} (${reason})`).join(", ");
    place.append(make("p", { className: "muted", textContent: `${counted(skipped.length)} could not be used: ${first}` }));
  }
  place.hidden = false;
}

/** Fills `place` with what the server remembers of an earlier training. */
export function showEarlier(place, name, { accuracy, examples }, look) {
  place.refresh = () => {};
  place.replaceChildren(
    make("h2", { id: "result-title", textContent: `“${name}” is served` }),
    make("p", { className: "score" }, make("b", { textContent: percent(accuracy) }), " recognised"),
    make("p", { className: "muted", textContent: `It was learned from ${counted(examples)}. Train again to see which of them it gets wrong.` }),
    make("div", { className: "controls" }, button("See it live", look), download(name)),
  );
  place.hidden = false;
}

function download(model) {
  const text = "Download the model";
  const element = button(text, async () => {
    element.disabled = true;
    try {
      const content = await getModel(model, (share) => (element.textContent = `${Math.floor(share * 100)} %`));
      const url = URL.createObjectURL(content);
      make("a", { href: url, download: `${model}.onnx` }).click();
      // The browser needs the URL until it has begun to save.
      setTimeout(() => URL.revokeObjectURL(url), 60_000);
      element.textContent = text;
    } catch (error) {
      element.textContent = `${text} again`;
      element.after(make("p", { className: "trouble", role: "alert", textContent: explain(error) }));
    } finally {
      element.disabled = false;
    }
  }, { id: "download", title: `${model}.onnx` });
  return element;
}

function perClass({ classes, confusions }) {
  const rows = classes.map((one) => {
    const taken = confusions.filter((confusion) => confusion.class === one.class);
    const fill = make("i");
    fill.style.transform = `scaleX(${one.examples ? one.right / one.examples : 0})`;
    const row = make("li", {}, make("span", { className: "label", textContent: one.class }),
      make("span", { className: "percent", textContent: `${one.right} of ${one.examples}` }),
      make("div", { className: "bar", ariaHidden: "true" }, fill));
    if (taken.length) {
      const text = taken.map(({ predicted, examples }) => `${examples} taken for ${predicted}`).join(", ");
      row.append(make("span", { className: "muted taken", textContent: text }));
    }
    return row;
  });
  return make("ul", { className: "answers classes", ariaLabel: "Recognised pictures of each class" }, ...rows);
}

function mistaken(place, { mistakes }, { pictures, removePicture }) {
  const items = mistakes.map((mistake) => ({
    ...mistake, kept: pictures.of(mistake.class).find((picture) => picture.name === mistake.picture),
  })).filter(({ kept }) => kept);
  if (!items.length) return null;
  const told = new Map(items.map(({ kept, predicted, probability }) => [kept, `taken for ${predicted} (${percent(probability)})`]));
  const caption = (picture) => `${picture.className}, ${told.get(picture)}`;
  const list = make("ul", { className: "mistakes" });
  const all = items.map(({ kept }) => kept);
  let shows = [];
  place.refresh = () => shows.forEach((show) => show());
  const fill = () => {
    shows = [];
    list.replaceChildren(...all.filter((picture) => !picture.isGone).slice(0, MOST_MISTAKES).map((picture) => {
      const image = make("img", { alt: "" });
      const show = () => {
        image.hidden = !picture.url;
        if (picture.url) image.src = picture.url;
      };
      shows.push(show);
      pictures.want(picture);
      const open = button("", () => view(all.filter((one) => !one.isGone), picture, {
        caption,
        remove: async (one) => {
          await removePicture(one);
          fill();
        },
      }), { className: "thumb", ariaLabel: caption(picture) });
      open.append(image);
      return make("li", {}, open, make("span", {}, make("b", { textContent: picture.className }), ` ${told.get(picture)}`));
    }));
    place.refresh();
  };
  fill();
  const more = items.length > MOST_MISTAKES ? `, of which the ${MOST_MISTAKES} surest are shown` : "";
  return [make("h3", { textContent: `It gets ${counted(items.length)} wrong${more}` }),
    make("p", { className: "muted", textContent: "Are they in the right class? If so, more pictures like these help." }), list];
}
