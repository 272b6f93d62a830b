"use strict";
// What the other scripts of the page share. Text is set as text, never as HTML.
const NOTHING = "\u2013";
const data = JSON.parse(document.getElementById("page-data").textContent);
const columns = data.rows.columns;
const columnOf = Object.fromEntries(columns.map((column) => [column.name, column]));
const grouped = new Intl.NumberFormat("en");

const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

// An element of SVG with its attributes.
const SVG = document.querySelector("svg").namespaceURI;
const drawn = (name, attributes = {}, ...children) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

// A name that may be broken after each slash.
const breakable = (text) => {
  const parts = String(text).split("/");
  return parts.flatMap((part, place) => (place < parts.length - 1 ? [`${part}/`, document.createElement("wbr")] : [part]));
};

// A layer and method as the tables write them.
const named = ([layer, method]) => [element("span", { className: "layer" }, ...breakable(layer)), " ", ...breakable(method)];

const textOf = (column, row) => {
  const value = row === undefined ? null : column.values[row];
  if (value === null) return NOTHING;
  return column.words ? column.words[value] : value.toFixed(column.digits);
};

const button = (label, press, properties = {}) => {
  const made = element("button", { type: "button", textContent: label, ...properties });
  made.addEventListener("click", press);
  return made;
};

// A select of [value, words] pairs with its label.
const choice = (label, options, change) => {
  const select = element("select", {}, ...options.map(([value, words]) => element("option", { value: String(value), textContent: words })));
  select.addEventListener("input", () => change(select.value));
  return { select, label: element("label", {}, label, select) };
};
