function draw(specs, datasets) {
  const options = { actions: false, renderer: "svg", tooltip: { theme: "light" } };
  for (const place of document.querySelectorAll("[data-chart]")) {
    const spec = { datasets, ...specs[place.dataset.chart] };
    window.headwayEmbed(place, spec, options).catch((error) => {
      place.textContent = "This chart could not be drawn: " + error.message;
    });
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    table.querySelectorAll("th button").forEach((button, column) => {
      button.addEventListener("click", () => sortBy(table, column, button.closest("th")));
    });
  }
}

function sortBy(table, column, heading) {
  const down = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = table.tBodies[0];
  const key = (row) => {
    const cell = row.cells[column];
    if (cell.dataset.order !== undefined) return Number(cell.dataset.order);
    return cell.classList.contains("number") ? NaN : cell.textContent;
  };
  const compare = (a, b) => {
    const [left, right] = [key(a), key(b)];
    if (Number.isNaN(left) || Number.isNaN(right)) return Number.isNaN(left) - Number.isNaN(right); // unknown: last
    const order = typeof left === "number" ? left - right : left.localeCompare(right);
    return down ? -order : order;
  };
  body.append(...[...body.rows].sort(compare));
}
