// Turns the static table into one of all rows, with sorting, filters and pages.
{
  const PAGE = 25, MOST_CHOICES = 200;
  const table = document.getElementById("rows-table"), body = table.tBodies[0];
  const form = document.getElementById("filters"), pager = document.getElementById("pager");
  const total = columns[0].values.length;
  const collator = new Intl.Collator("en", { numeric: true });
  let order = Array.from({ length: total }, (_, row) => row);
  let shown = order, first = 0;

  // Words are sorted once, and rows are compared by the rank of their word.
  const keys = (column) => {
    if (!column.words) return column.values;
    const sorted = column.words.map((_, place) => place).sort((a, b) => collator.compare(column.words[a], column.words[b]));
    const rank = [];
    sorted.forEach((place, number) => { rank[place] = number; });
    return column.values.map((value) => (value === null ? null : rank[value]));
  };

  const status = element("p", { role: "status" });
  const back = button("Previous", () => { first = Math.max(0, first - PAGE); draw(); });
  const on = button("Next", () => { first += PAGE; draw(); });

  const draw = () => {
    const page = shown.slice(first, first + PAGE);
    body.replaceChildren(...page.map((row) => element("tr", {}, ...columns.map((column) =>
      element("td", { className: column.words ? "" : "n" }, ...breakable(textOf(column, row)))))));
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
    const made = choice(column.label, [["", "all"], ...column.words.map((word, place) => [place, word])], () => filter());
    form.append(made.label);
    choices.push([column, made.select]);
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
    head.replaceChildren(button(column.label, () => sort(head, column)));
  });
  search.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  pager.append(back, on, status);
  form.hidden = pager.hidden = false;
  document.getElementById("rows-note").textContent = `${grouped.format(total)} rows. Select a heading to sort by its column.`;
  draw();
}
