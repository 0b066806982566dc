// Sorting, the theme, and reading the maps. The page is whole without it.
"use strict";

const root = document.documentElement;

// ---- Theme: the system's until the reader chooses. -----------------------------------------------------------------

const button = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");

function nameTheme() {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
  button.textContent = dark ? "Light theme" : "Dark theme";
  return dark;
}

button.addEventListener("click", () => {
  root.dataset.theme = nameTheme() ? "light" : "dark";
  nameTheme();
});
system.addEventListener("change", nameTheme);
nameTheme();
button.hidden = false;

// ---- Tables --------------------------------------------------------------------------------------------------------

const collator = new Intl.Collator("en", { numeric: true });

function comparer(column, numeric, descending) {
  const sign = descending ? -1 : 1;
  const read = (row) => {
    const cell = row.cells[column];
    return numeric ? (cell.dataset.v === "" ? null : Number(cell.dataset.v)) : cell.textContent;
  };
  return (a, b) => {
    const [x, y] = [read(a), read(b)];
    // What has no number comes last in either order.
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (numeric ? (x < y ? -1 : x > y ? 1 : 0) : collator.compare(x, y));
  };
}

function sortBy(table, head) {
  const descending = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort(comparer(head.cellIndex, head.dataset.sort === "number", descending)));
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const head of table.tHead.rows[0].cells) {
    const press = document.createElement("button");
    press.type = "button";
    press.append(...head.childNodes);
    head.append(press);
    head.setAttribute("aria-sort", "none");
    press.addEventListener("click", () => sortBy(table, head));
  }
}

// ---- Maps ----------------------------------------------------------------------------------------------------------

const shared = document.getElementById("shared-scale");

if (shared) {
  const cells = [...document.querySelectorAll("rect.cell[data-shared]")];
  const paint = () => {
    for (const { dataset, attributes } of cells)
      attributes["fill-opacity"].value = shared.checked ? dataset.shared : dataset.own;
  };
  shared.addEventListener("change", paint);
  // A browser may remember the switch of an earlier visit.
  paint();
  shared.parentElement.hidden = false;
  for (const hint of document.querySelectorAll(".script-only")) hint.hidden = false;
}

function nearest(cells, from, key) {
  const box = (cell) => cell.getBBox();
  const here = box(from);
  const across = key === "ArrowLeft" ? -1 : key === "ArrowRight" ? 1 : 0;
  const down = key === "ArrowUp" ? -1 : key === "ArrowDown" ? 1 : 0;
  let best = null;
  let least = Infinity;
  for (const cell of cells) {
    const there = box(cell);
    const along = across ? (there.x - here.x) * across : (there.y - here.y) * down;
    // Cells that cover all layers have no column: the gap between two boxes is what counts.
    const gap = across
      ? Math.abs(there.y - here.y)
      : Math.max(0, there.x - here.x - here.width + 1, here.x - there.x - there.width + 1);
    if (along > 0.5 && along + 1000 * gap < least) {
      best = cell;
      least = along + 1000 * gap;
    }
  }
  return best;
}

for (const figure of document.querySelectorAll(".heat-figure")) {
  const map = figure.querySelector("svg.heat");
  const readout = figure.querySelector(".readout");
  const cells = [...map.querySelectorAll("rect.cell")];
  if (!cells.length) continue;
  let current = null;
  // Drawn last, so that no neighbour covers a side of it.
  const cursor = document.createElementNS(map.namespaceURI, "rect");
  cursor.classList.add("cursor");

  const show = (cell) => {
    current = cell;
    for (const name of ["x", "y", "width", "height"]) cursor.setAttribute(name, cell.getAttribute(name));
    map.append(cursor);
    readout.textContent = cell.querySelector("title").textContent;
  };

  map.setAttribute("tabindex", "0");
  map.setAttribute("role", "application");
  map.setAttribute("aria-roledescription", "map; arrow keys read its cells");
  map.addEventListener("pointerover", (event) => {
    const cell = event.target.closest("rect.cell");
    if (cell) show(cell);
  });
  map.addEventListener("focus", () => current ?? show(cells[0]));
  map.addEventListener("keydown", (event) => {
    if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
    show((current && nearest(cells, current, event.key)) ?? current ?? cells[0]);
  });
}
