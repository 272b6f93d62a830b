// The means of all layers and methods, one metric against another.
{
  const { axes, points } = data.scatter;
  const HEIGHT = 360, LEFT = 52, RIGHT = 16, TOP = 12, BOTTOM = 44, MOST_NAMED = 24;
  const place = document.getElementById("scatter");
  const chosen = [axes.length - 1, 0];
  place.hidden = axes.length < 2;
  const WIDTH = Math.min(Math.max(place.clientWidth - 40, 320), 1000); // one unit is a pixel, on a phone too

  // Round numbers from one end of an axis to the other.
  const ticksOf = (values) => {
    const low = Math.min(...values), high = Math.max(...values), span = high - low || Math.abs(high) || 1;
    const rough = span / 4, unit = 10 ** Math.floor(Math.log10(rough));
    const step = unit * [1, 2, 2.5, 5, 10].find((one) => one * unit >= rough);
    const first = Math.floor(low / step), last = Math.max(Math.ceil(high / step), first + 1);
    return Array.from({ length: last - first + 1 }, (_, number) => Number(((first + number) * step).toPrecision(10)));
  };

  const draw = () => {
    const [across, up] = chosen;
    const known = points.filter((point) => point.values[across] !== null && point.values[up] !== null);
    const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
    const title = `${axes[up].label} against ${axes[across].label}`;
    svg.append(drawn("title", {}, `${title}; the table below has the numbers`));
    if (!known.length) return { svg, title };
    const scale = (axis, from, to) => {
      const ticks = ticksOf(known.map((point) => point.values[axis]));
      return { ticks, at: (value) => from + ((to - from) * (value - ticks[0])) / (ticks.at(-1) - ticks[0]) };
    };
    const x = scale(across, LEFT, WIDTH - RIGHT), y = scale(up, HEIGHT - BOTTOM, TOP);
    for (const tick of x.ticks) {
      svg.append(drawn("line", { class: "grid", x1: x.at(tick), x2: x.at(tick), y1: TOP, y2: HEIGHT - BOTTOM }),
        drawn("text", { class: "tick", x: x.at(tick), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, String(tick)));
    }
    for (const tick of y.ticks) {
      svg.append(drawn("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y.at(tick), y2: y.at(tick) }),
        drawn("text", { class: "tick", x: LEFT - 6, y: y.at(tick) + 4, "text-anchor": "end" }, String(tick)));
    }
    svg.append(drawn("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, `${axes[across].label} (${axes[across].note})`),
      drawn("text", { x: 12, y: (TOP + HEIGHT - BOTTOM) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(TOP + HEIGHT - BOTTOM) / 2})` }, `${axes[up].label} (${axes[up].note})`));
    // Names keep off all points and off each other; a name without room is only in the title of its point.
    const taken = known.map((point) => ({ x1: x.at(point.values[across]) - 6, y: y.at(point.values[up]), width: 12 }));
    for (const point of [...known].sort((a, b) => a.control - b.control)) {
      const [cx, cy] = [x.at(point.values[across]), y.at(point.values[up])];
      const name = point.control ? `${point.method} (control)` : `${point.layer} ${point.method}`;
      const numbers = [across, up].map((axis) => `${axes[axis].label} ${point.values[axis].toFixed(axes[axis].digits)}`).join(", ");
      const mark = point.control
        ? drawn("rect", { class: "dot control", x: cx - 4.5, y: cy - 4.5, width: 9, height: 9 })
        : drawn("circle", { class: "dot", cx, cy, r: 5 });
      mark.append(drawn("title", {}, `${name}: ${numbers}`));
      svg.append(mark);
      if (known.length <= MOST_NAMED) label(svg, name, cx, cy, point.control, taken);
    }
    return { svg, title };
  };

  // A name beside its point, on the right or the left, or a little lower or higher; none if there is no room.
  const label = (svg, name, cx, cy, muted, taken) => {
    const width = 6.2 * name.length;
    const places = [0, 12, -12].flatMap((by) => [cx + 9, cx - 9 - width].map((x1) => ({ x1, y: cy + by, width })));
    const free = places.find(({ x1, y }) => x1 > LEFT && x1 + width < WIDTH && y > TOP - 6 && y < HEIGHT - BOTTOM + 6 &&
      taken.every((other) => Math.abs(other.y - y) >= 11 || other.x1 > x1 + width || other.x1 + other.width < x1));
    if (!free) return;
    taken.push(free);
    const left = free.x1 < cx;
    svg.append(drawn("text", { class: muted ? "name muted" : "name", x: left ? cx - 9 : cx + 9, y: free.y + 4, "text-anchor": left ? "end" : "start" }, name));
  };

  if (axes.length > 1) {
    const caption = element("strong"), holder = element("div", { className: "plot" });
    const redraw = () => {
      const { svg, title } = draw();
      caption.textContent = title;
      holder.replaceChildren(svg);
    };
    const selects = ["Across", "Up"].map((label_, number) => {
      const made = choice(label_, axes.map((axis, place_) => [place_, axis.label]), (value) => { chosen[number] = Number(value); redraw(); });
      made.select.value = String(chosen[number]);
      return made.label;
    });
    place.append(element("figure", { className: "panel wide" },
      element("figcaption", {}, caption, element("span", { className: "note", textContent: "Dots are methods, squares are control maps, which ignore the model. Compare methods with control maps of about the same mask area." })),
      element("form", {}, ...selects), holder));
    redraw();
  }
}
