// The images with maps as a grid of one layer and method, sorted and filtered. An image opens the viewer.
const grid = (() => {
  const { pairs, images } = data.explorer;
  if (!images.length) return null;
  const CLASSES = ["label", "predicted", "target"];
  const place = document.getElementById("grid");
  const sortable = columns.filter((column) => !column.words && !CLASSES.includes(column.name));
  const directed = sortable.find((column) => typeof data.directions[column.name] === "boolean");
  const first = pairs.findIndex(([layer, method]) => layer === data.start[0] && method === data.start[1]);
  const state = { pair: Math.max(first, 0), by: directed || sortable[0], order: "worst", class: "", status: "", correct: "" };

  // Rows by image, layer and method, of the images here.
  const here = new Set(images.map((image) => columnOf.image_id.words.indexOf(image.id)));
  const rows = new Map();
  const key = (image, layer, method) => JSON.stringify([image, layer, method]);
  columnOf.image_id.values.forEach((word, row) => {
    if (here.has(word)) rows.set(key(columnOf.image_id.words[word], textOf(columnOf.layer, row), textOf(columnOf.method, row)), row);
  });
  const rowOf = (image, pair = state.pair) => rows.get(key(image.id, ...pairs[pair]));
  const valueOf = (name, row) => (columnOf[name] && row !== undefined ? columnOf[name].values[row] : null);

  // The class by which images are filtered is the label, or what is explained.
  const classes = ["label", "target"].map((name) => columnOf[name]).find((column) => column && column.values.some((value) => value !== null));
  const nameOf = (column, value) => (value === null ? NOTHING : column.words ? column.words[value] : `class ${value}`);
  const isRight = (row) => {
    const [label, predicted] = ["label", "predicted"].map((name) => valueOf(name, row));
    return label === null || predicted === null ? null : label === predicted;
  };

  const matches = (row) =>
    (state.class === "" || String(classes.values[row]) === state.class) &&
    (state.status === "" || textOf(columnOf.status, row) === state.status) &&
    (state.correct === "" || String(isRight(row)) === state.correct);

  // Images without a value come last.
  const sorted = () => {
    const higher = data.directions[state.by.name] ?? true, down = (state.order === "worst") !== higher;
    const value = (image) => valueOf(state.by.name, rowOf(image));
    return images.filter((image) => rowOf(image) !== undefined && matches(rowOf(image))).sort((a, b) =>
      (value(a) === null) - (value(b) === null) || (down ? -1 : 1) * (value(a) - value(b)));
  };

  // A picture with its map above it, which the style blends.
  const blended = (image, pair, alt) => element("span", { className: "blend" },
    element("img", { src: image.image, alt }), element("img", { className: "map", src: image.maps[pair], alt: "" }));

  const summary = (row) => [`${state.by.label} ${textOf(state.by, row)}`,
    ["confidence", "masked_confidence"].filter((name) => columnOf[name])
      .map((name) => valueOf(name, row)).map((value) => (value === null ? NOTHING : value.toFixed(2))).join(" \u2192 ")];

  const list = element("ul", { className: "cards" });
  const status = element("p", { role: "status", className: "note" });
  let shown = [];

  const card = (image) => {
    const [value, confidence] = summary(rowOf(image));
    const face = element("button", { type: "button", className: "picture" },
      element("img", { src: image.image, alt: "" }), blended(image, state.pair, ""),
      element("span", { className: "id" }, ...breakable(image.id)), element("span", {}, value), element("span", {}, confidence));
    face.addEventListener("click", () => viewer.open(image));
    return element("li", {}, face);
  };

  const draw = () => {
    shown = sorted();
    list.replaceChildren(...shown.map(card));
    status.textContent = shown.length
      ? `${shown.length} of ${images.length} images: each image, its map over it, and its confidence before and after masking. Select one to see it large, with all of its maps.`
      : "No image matches the filters";
  };

  const set = (name) => (value) => { state[name] = value; draw(); };
  const directions = choice("Order", [], set("order"));
  const nameDirections = () => {
    const known = typeof data.directions[state.by.name] === "boolean";
    const words = known ? ["worst first", "best first"] : ["lowest first", "highest first"];
    directions.select.replaceChildren(...["worst", "best"].map((value, number) => element("option", { value, textContent: words[number], selected: value === state.order })));
  };
  const pairChoice = choice("Layer and method", pairs.map((pair, number) => [number, pair.join(" ")]), (value) => set("pair")(Number(value)));
  pairChoice.select.value = String(state.pair);
  const by = choice("Sort by", sortable.map((column) => [column.name, column.label]), (name) => {
    state.by = columnOf[name];
    nameDirections();
    draw();
  });
  by.select.value = state.by.name;
  nameDirections();

  const all = [["", "all"]];
  const used = (column) => [...new Set([...rows.values()].map((row) => column.values[row]))].filter((value) => value !== null).sort((a, b) => a - b);
  const filters = [];
  if (classes && used(classes).length > 1) {
    filters.push(choice("Class", [...all, ...used(classes).map((value) => [value, nameOf(classes, value)])], set("class")));
  }
  if (used(columnOf.status).length > 1) {
    filters.push(choice("Status", [...all, ...used(columnOf.status).map((value) => [columnOf.status.words[value], columnOf.status.words[value]])], set("status")));
  }
  if (new Set([...rows.values()].map(isRight)).size > 1) {
    filters.push(choice("Prediction", [...all, ["true", "correct"], ["false", "wrong"]], set("correct")));
  }

  const form = element("form", {}, pairChoice.label, by.label, directions.label, ...filters.map((one) => one.label));
  form.addEventListener("submit", (event) => event.preventDefault());
  place.append(form, status, list);
  place.hidden = false;
  document.getElementById("galleries").classList.add("replaced");
  const note = document.getElementById("grid-note");
  if (note) note.hidden = false;
  draw();

  return {
    pairs, state, rowOf, valueOf, nameOf, isRight, blended, summary,
    shown: () => shown,
    choosePair: (pair) => { state.pair = pair; pairChoice.select.value = String(pair); draw(); },
    focus: (image) => list.children[shown.indexOf(image)]?.firstChild.focus(),
  };
})();
