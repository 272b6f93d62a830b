// An image at full size: the map over it, the masked image, and all maps of the image with their numbers.
const viewer = grid && (() => {
  const HIDDEN_COLUMNS = ["image_id", "layer", "method", "group", "label", "predicted", "target", "confidence"];
  const numbers = columns.filter((column) => !HIDDEN_COLUMNS.includes(column.name));
  let image = null;

  const title = element("h2", { id: "viewer-title" });
  const rank = element("p", { className: "note", role: "status" });
  const back = button("Previous", () => step(-1));
  const on = button("Next", () => step(1));
  const close = button("Close", () => dialog.close());
  const slider = element("input", { type: "range", min: "0", max: "100", step: "5", value: "65" });
  const opacity = element("label", { className: "opacity" }, "Opacity of the map", slider);
  const picture = (className = "") => element("img", { alt: "", className });
  const whole = picture(), under = picture(), over = picture("map"), masked = picture();
  const stack = element("span", { className: "blend" }, under, over);
  const frame = (content, ...words) => element("figure", {}, content, element("figcaption", {}, ...words));
  const maskedFrame = frame(masked, "Masked by the map: what the model sees");
  const trio = element("div", { className: "trio" }, frame(whole, "Image"), frame(stack, "Map over the image", opacity), maskedFrame);
  const facts = element("dl", { className: "facts" });
  const table = element("table", {}, element("thead"), element("tbody"));
  const scroll = element("div", { className: "scroll", role: "region", tabIndex: 0, ariaLabel: "All maps of this image" }, table);
  table.tHead.append(element("tr", {}, ...["map", "layer and method"].map((name) => element("th", { scope: "col", textContent: name })),
    ...numbers.map((column) => element("th", { scope: "col", className: column.words ? "" : "n", textContent: column.label }))));
  const dialog = element("dialog", { id: "viewer", className: document.getElementById("grid").className },
    element("div", { className: "bar" }, title, back, on, close), rank, trio, facts, scroll);
  dialog.setAttribute("aria-labelledby", "viewer-title");

  const step = (by) => {
    const shown = grid.shown(), next = shown[shown.indexOf(image) + by];
    if (next) { image = next; draw(); }
  };

  const fact = (name, value) => element("div", {}, element("dt", { textContent: name }), element("dd", {}, ...breakable(value)));

  const classFacts = (row) => ["target", "predicted", "label"].filter((name) => columnOf[name] && grid.valueOf(name, row) !== null).map((name) =>
    fact({ target: "explained class", predicted: "prediction", label: "label" }[name], grid.nameOf(columnOf[name], grid.valueOf(name, row))));

  const line = (pair, number) => {
    const row = grid.rowOf(image, number), current = number === grid.state.pair;
    const select = button("", () => { grid.choosePair(number); draw(); });
    select.append(...named(pair));
    select.setAttribute("aria-pressed", String(current));
    return element("tr", { className: current ? "current" : "" },
      element("td", {}, grid.blended(image, number, "")), element("td", {}, select),
      ...numbers.map((column) => element("td", { className: column.words ? "" : "n" }, textOf(column, row))));
  };

  const draw = () => {
    const shown = grid.shown(), position = shown.indexOf(image), { pair, by } = grid.state, row = grid.rowOf(image);
    const words = grid.pairs[pair].join(" ");
    title.replaceChildren(...breakable(image.id));
    rank.textContent = position < 0 ? "Not among the images that the filters let pass"
      : `Image ${position + 1} of ${shown.length} by ${by.label}: ${textOf(by, row)}. Arrow keys go to the next and the previous one.`;
    // A button that is disabled while it has the focus would lose it, and the keyboard with it.
    back.ariaDisabled = String(position <= 0);
    on.ariaDisabled = String(position < 0 || position >= shown.length - 1);
    Object.assign(whole, { src: image.image, alt: `Image ${image.id}` });
    Object.assign(under, { src: image.image, alt: `Map of ${words} over the image` });
    over.src = image.maps[pair];
    maskedFrame.hidden = !image.masked[pair];
    if (image.masked[pair]) Object.assign(masked, { src: image.masked[pair], alt: `Image masked by the map of ${words}` });
    const [, confidence] = grid.summary(row);
    const right = grid.isRight(row);
    facts.replaceChildren(...classFacts(row), ...(confidence ? [fact("confidence in the explained class, before \u2192 after masking", confidence)] : []),
      ...(right === null ? [] : [fact("the prediction is", right ? "correct" : "wrong")]));
    // New lines would take the focus from the old ones, and the arrow keys with it.
    const held = [...table.tBodies[0].rows].findIndex((old) => old.contains(document.activeElement));
    table.tBodies[0].replaceChildren(...grid.pairs.map(line));
    if (held >= 0) table.tBodies[0].rows[held].querySelector("button").focus();
    blend();
  };

  const blend = () => { over.style.opacity = String(Number(slider.value) / 100); };
  slider.addEventListener("input", blend);
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !dialog.open || event.target === slider || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    step(by);
  });
  dialog.addEventListener("close", () => grid.focus(image));

  const open = (chosen) => {
    image = chosen;
    draw();
    if (!dialog.isConnected) document.body.append(dialog);
    dialog.showModal();
    close.focus();
    dialog.scrollTop = 0;
  };
  return { open };
})();
