"use strict";
// Turns the static table into one of all rows, with sorting, filters and pages. Text is set as text, never as HTML.
(() => {
  const NOTHING = "\u2013", PAGE = 25, MOST_CHOICES = 200;
  const columns = JSON.parse(document.getElementById("rows-data").textContent).columns;
  const table = document.getElementById("rows-table"), body = table.tBodies[0];
  const form = document.getElementById("filters"), pager = document.getElementById("pager");
  const total = columns[0].values.length;
  const collator = new Intl.Collator("en", { numeric: true });
  const grouped = new Intl.NumberFormat("en");
  let order = Array.from({ length: total }, (_, row) => row);
  let shown = order, first = 0;

  const text = (column, row) => {
    const value = column.values[row];
    if (value === null) return NOTHING;
    return column.words ? column.words[value] : value.toFixed(column.digits);
  };

  // Words are sorted once, and rows are compared by the rank of their word.
  const keys = (column) => {
    if (!column.words) return column.values;
    const sorted = column.words.map((_, place) => place).sort((a, b) => collator.compare(column.words[a], column.words[b]));
    const rank = [];
    sorted.forEach((place, number) => { rank[place] = number; });
    return column.values.map((value) => (value === null ? null : rank[value]));
  };

  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };

  const status = element("p", { role: "status" });
  const back = element("button", { type: "button", textContent: "Previous" });
  const on = element("button", { type: "button", textContent: "Next" });

  const draw = () => {
    const page = shown.slice(first, first + PAGE);
    body.replaceChildren(...page.map((row) => element("tr", {}, ...columns.map((column) =>
      element("td", { className: column.words ? "" : "n", textContent: text(column, row) })))));
    back.disabled = first === 0;
    on.disabled = first + PAGE >= shown.length;
    const of = shown.length === total ? "" : ` (of ${grouped.format(total)})`;
    status.textContent = shown.length
      ? `Rows ${grouped.format(first + 1)} to ${grouped.format(first + page.length)} of ${grouped.format(shown.length)}${of}`
      : "No row matches the filters";
  };

  const search = element("input", { type: "search", autocomplete: "off" });
  form.append(element("label", {}, "Image contains", search));
  const choices = [];
  for (const column of columns.slice(1)) {
    if (!column.words || column.words.length < 2 || column.words.length > MOST_CHOICES) continue;
    const select = element("select", {}, element("option", { value: "", textContent: "all" }),
      ...column.words.map((word, place) => element("option", { value: String(place), textContent: word })));
    form.append(element("label", {}, column.label, select));
    choices.push([column, select]);
  }

  const filter = () => {
    const wanted = search.value.trim().toLowerCase();
    const images = columns[0].words.map((word) => word.toLowerCase().includes(wanted));
    const chosen = choices.filter(([, select]) => select.value !== "").map(([column, select]) => [column.values, Number(select.value)]);
    shown = order.filter((row) => images[columns[0].values[row]] && chosen.every(([values, value]) => values[row] === value));
    first = 0;
    draw();
  };

  const sort = (head, column) => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = keys(column), sign = down ? -1 : 1;
    // Rows without a value come last in both directions.
    order.sort((a, b) => (key[a] === null) - (key[b] === null) || sign * (key[a] - key[b]) || a - b);
    filter();
  };

  columns.forEach((column, place) => {
    const head = table.tHead.rows[0].cells[place];
    const button = element("button", { type: "button", textContent: column.label });
    button.addEventListener("click", () => sort(head, column));
    head.replaceChildren(button);
  });
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  back.addEventListener("click", () => { first = Math.max(0, first - PAGE); draw(); });
  on.addEventListener("click", () => { first += PAGE; draw(); });
  pager.append(back, on, status);
  form.hidden = pager.hidden = false;
  document.getElementById("rows-note").textContent = `${grouped.format(total)} rows. Select a heading to sort by its column.`;
  draw();
})();
