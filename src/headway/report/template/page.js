const FIRST = 25; // rows of a table of candidates, until all are asked for

function draw(specs, columns) {
  const datasets = Object.fromEntries(Object.entries(columns).map(([name, one]) => [name, rowsOf(name, one)]));
  const options = { actions: false, renderer: "svg", tooltip: { theme: "light" } };
  const drawn = [...document.querySelectorAll("[data-chart]")].map((place) => {
    const spec = { datasets, ...specs[place.dataset.chart] };
    return window.headwayEmbed(place, spec, options).then(
      (chart) => { chart.view.addEventListener("click", (event, item) => lead(item)); return chart.view; },
      (error) => { place.textContent = "This chart could not be drawn: " + error.message; });
  });
  document.querySelectorAll("table.sortable th button").forEach((button) => {
    button.addEventListener("click", () => sortBy(button.closest("table"), button.closest("th")));
  });
  for (const table of document.querySelectorAll("table[data-rows]")) list(table, datasets[table.dataset.rows], drawn);
}

// Rows as objects; what a table says below each of them is not held twice.
function rowsOf(name, columns) {
  const said = document.querySelectorAll(`table[data-rows="${name}"] tr.why`);
  const names = Object.keys(columns);
  return columns[names[0]].map((_, place) => ({
    ...Object.fromEntries(names.map((each) => [each, columns[each][place]])), row: `${name}-${place}`, reason: said[place]?.textContent.trim(),
  }));
}

// The rows that pass the filter, in the table and in all charts over the same rows; of the table the first, unless all are asked for.
function list(table, rows, drawn) {
  const bodies = [...table.tBodies], bar = table.closest("section").querySelector(".count");
  const filter = document.querySelector("form.filter"), all = bar.querySelector("button"), sorting = bar.querySelector("select");
  rows.forEach((row, place) => { bodies[place].row = row; bodies[place].id = row.row; });
  let most = FIRST;
  const passes = (row) => !filter || [...filter.elements].every((one) => {
    if (one.name === "name") return row.name.toLowerCase().includes(one.value.trim().toLowerCase());
    const values = one.tagName === "SELECT" ? JSON.parse(one.value) : [];
    return !values.length || values.includes(String(row[one.name]));
  });
  const show = () => {
    let passed = 0;
    for (const body of table.tBodies) body.hidden = !passes(body.row) || passed++ >= most;
    const shown = Math.min(passed, most);
    const words = `${passed} of ${rows.length} deployments` + (passed < rows.length ? " pass the filter" : "");
    bar.querySelector("output").textContent = shown < passed ? `${words}, ${shown} shown` : words;
    if (filter) filter.querySelector("output").textContent = words;
    all.hidden = shown === passed;
  };
  const thin = () => {
    most = FIRST;
    show();
    const kept = rows.filter(passes);
    for (const one of drawn) one.then((view) => {
      if (view && table.dataset.rows in view.getState().data) view.data(table.dataset.rows, kept).runAsync();
    });
  };
  const whole = () => { most = Infinity; show(); };
  all.addEventListener("click", whole);
  addEventListener("beforeprint", () => {
    const before = most;
    addEventListener("afterprint", () => { most = before; show(); }, { once: true });
    whole();
  });
  table.addEventListener("sorted", show);
  table.addEventListener("reveal", (event) => { if (event.target.hidden) whole(); });
  sorting.addEventListener("change", () => sortBy(table, table.tHead.rows[0].cells[sorting.selectedIndex]));
  filter?.addEventListener("input", thin);
  filter?.addEventListener("reset", () => setTimeout(thin));
  filter?.addEventListener("submit", (event) => event.preventDefault());
  for (const one of [bar, filter]) if (one) one.hidden = false;
  show();
}

// From a point to its row.
function lead(item) {
  const body = document.getElementById(item?.datum?.row);
  if (!body) return;
  body.dispatchEvent(new Event("reveal", { bubbles: true }));
  for (const other of document.querySelectorAll("tbody.led")) other.classList.remove("led");
  body.classList.add("led");
  body.scrollIntoView({ block: "center" });
}

function sortBy(table, heading) {
  const column = heading.cellIndex, down = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const number = heading.classList.contains("n");
  const key = (part) => {
    const cell = (part.rows ? part.rows[0] : part).cells[column];
    if (cell.dataset.order !== undefined) return Number(cell.dataset.order);
    return number ? parseFloat(cell.textContent.replace(/[^\d.e-]/g, "")) : cell.textContent;
  };
  const compare = (a, b) => {
    const [left, right] = [key(a), key(b)];
    if (Number.isNaN(left) || Number.isNaN(right)) return Number.isNaN(left) - Number.isNaN(right); // unknown: last
    const order = typeof left === "number" ? left - right : left.localeCompare(right);
    return down ? -order : order;
  };
  const many = table.tBodies.length > 1;
  (many ? table : table.tBodies[0]).append(...[...(many ? table.tBodies : table.tBodies[0].rows)].sort(compare));
  table.dispatchEvent(new Event("sorted"));
}
