// The table as files, and each chart as SVG and PNG.
{
  const STYLE = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "stroke-linejoin", "opacity", "font-family", "font-size", "font-weight"];
  const TITLE = 26, SHARPNESS = 3;
  const slug = (text) => text.replace(/[^\w]+/g, "-").replace(/^-|-$/g, "").slice(0, 80);
  const page = slug(document.title.replace(/^Explanation scores of /, "")) || "report";

  const save = (name, blob) => {
    const link = element("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };

  // A chart with its title and its styles in itself, in the colours of paper.
  const standalone = (svg, title) => {
    document.documentElement.classList.add("paper");
    const copy = svg.cloneNode(true);
    const parts = [svg, ...svg.querySelectorAll("*")], copies = [copy, ...copy.querySelectorAll("*")];
    parts.forEach((part, number) => {
      const style = getComputedStyle(part);
      for (const name of STYLE) copies[number].setAttribute(name, style.getPropertyValue(name));
    });
    const text = getComputedStyle(document.body);
    const heading = drawn("text", { x: 2, y: -8, fill: text.color, "font-family": text.fontFamily, "font-size": 14, "font-weight": 600 }, title);
    document.documentElement.classList.remove("paper");
    const { width, height } = svg.viewBox.baseVal;
    copy.prepend(drawn("rect", { x: 0, y: -TITLE, width, height: height + TITLE, fill: "#ffffff" }), heading);
    copy.setAttribute("viewBox", `0 ${-TITLE} ${width} ${height + TITLE}`);
    copy.setAttribute("width", width);
    copy.setAttribute("height", height + TITLE);
    return new XMLSerializer().serializeToString(copy);
  };

  const savePng = (text, name) => {
    const image = new Image();
    image.addEventListener("load", () => {
      const canvas = element("canvas", { width: SHARPNESS * image.width, height: SHARPNESS * image.height });
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => save(name, blob), "image/png");
    });
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  };

  const table = document.getElementById("table-exports");
  const kinds = { csv: ["CSV", "text/csv"], tex: ["LaTeX", "text/x-tex"], md: ["Markdown", "text/markdown"] };
  table.append("Save the table as ", ...Object.entries(kinds).map(([end, [label, type]]) =>
    button(label, () => save(`${page}.${end}`, new Blob([data.exports[end]], { type: `${type};charset=utf-8` })))));
  table.hidden = false;

  for (const figure of document.querySelectorAll("figure.panel")) {
    const title = () => figure.querySelector("figcaption strong").textContent;
    const chart = () => standalone(figure.querySelector("svg"), title());
    const name = (end) => `${page}-${slug(title())}.${end}`;
    const press = (end, make) => button(end.toUpperCase(), () => make(chart(), name(end)), { ariaLabel: `Save the chart ${title()} as ${end.toUpperCase()}` });
    figure.append(element("p", { className: "exports" },
      press("svg", (text, file) => save(file, new Blob([text], { type: "image/svg+xml" }))), press("png", savePng)));
  }
}
