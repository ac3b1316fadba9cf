"use strict";
// Sort a table by a column: numbers first, then texts, empty cells last; ties keep their order.
function sortTable(table, column, descending) {
  const key = (row) => row.cells[column].getAttribute("data-sort");
  const compare = (a, b) => {
    const x = key(a), y = key(b);
    if (x === null || y === null) return (x === null) - (y === null);
    const p = x.trim() === "" ? NaN : Number(x), q = y.trim() === "" ? NaN : Number(y);
    const order = Number.isNaN(p) || Number.isNaN(q)
      ? Number.isNaN(p) - Number.isNaN(q) || x.localeCompare(y, "en", { numeric: true })
      : p - q;
    return descending ? -order : order;
  };
  const body = table.tBodies[0];
  body.append(...Array.from(body.rows).sort(compare));
}

for (const table of document.querySelectorAll("table")) {
  if (table.tBodies[0].rows.length < 2) continue;
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort by this column";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      // Figures are looked at from the highest down, names from a to z.
      const first = head.classList.contains("left") ? "ascending" : "descending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      sortTable(table, column, order === "descending");
    });
  });
}

// On paper there is nothing to unfold.
let unfolded = [];
window.addEventListener("beforeprint", () => {
  unfolded = Array.from(document.querySelectorAll("details.printed:not([open])"));
  unfolded.forEach((each) => { each.open = true; });
});
window.addEventListener("afterprint", () => unfolded.forEach((each) => { each.open = false; }));
