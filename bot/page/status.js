// Filters and sorts the table of models. Without it the page is a plain table. The URL keeps both:
// #q=qwen&state=planned,refused&sort=-kl
"use strict";

(() => {
  // Inside the frame of a Space, no page of the Hub opens.
  if (window.top !== window.self) {
    for (const link of document.querySelectorAll("a[href^=http]")) {
      link.target = "_blank";
      link.rel = "noopener";
    }
  }

  const table = document.querySelector("table[data-sortable]");
  if (!table) return;
  const form = document.querySelector(".filter");
  const query = form.querySelector("input");
  const chips = [...form.querySelectorAll("button[data-state]")];
  const found = form.querySelector(".found");
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const numbers = new Set(["state", "size", "bits", "kl", "top1"]);
  const rows = [...body.rows].map((row, place) => ({
    row,
    place,
    state: row.dataset.state,
    text: row.textContent.toLowerCase(),
    values: heads.map((head, column) => valueOf(row.cells[column], head.dataset.key)),
  }));
  const names = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  let sorted = { key: "", descending: false };

  function valueOf(cell, key) {
    const value = cell.dataset.value;
    if (value === undefined || value === "") return null;
    return numbers.has(key) ? Number(value) : value;
  }

  // What has no value comes last, whatever the direction.
  function compare(one, other, column, sign) {
    const [a, b] = [one.values[column], other.values[column]];
    if (a === null || b === null) return (a === null) - (b === null) || one.place - other.place;
    const order = typeof a === "number" ? a - b : names.compare(a, b);
    return sign * order || one.place - other.place;
  }

  function sort(key, descending) {
    const column = heads.findIndex((head) => head.dataset.key === key);
    sorted = column < 0 ? { key: "", descending: false } : { key, descending };
    const order = [...rows].sort(
      column < 0 ? (a, b) => a.place - b.place : (a, b) => compare(a, b, column, descending ? -1 : 1),
    );
    body.append(...order.map((item) => item.row));
    heads.forEach((head, number) => {
      if (number === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  }

  function filter() {
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    const states = chips.filter((chip) => chip.getAttribute("aria-pressed") === "true").map((chip) => chip.dataset.state);
    let shown = 0;
    for (const item of rows) {
      const fits = (!states.length || states.includes(item.state)) && words.every((word) => item.text.includes(word));
      item.row.hidden = !fits;
      shown += fits;
    }
    const all = rows.length === 1 ? "1 model" : `${rows.length} models`;
    found.textContent = shown === rows.length ? all : `${shown} of ${all}`;
    return states;
  }

  function write(states) {
    const asked = new URLSearchParams();
    if (query.value.trim()) asked.set("q", query.value.trim());
    if (states.length) asked.set("state", states.join(","));
    if (sorted.key) asked.set("sort", (sorted.descending ? "-" : "") + sorted.key);
    const hash = asked.toString().replaceAll("%2C", ",");
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }

  function read() {
    if (document.getElementById(location.hash.slice(1))) return; // a link within the page
    const asked = new URLSearchParams(location.hash.slice(1));
    const states = (asked.get("state") || "").split(",");
    query.value = asked.get("q") || "";
    for (const chip of chips) chip.setAttribute("aria-pressed", String(states.includes(chip.dataset.state)));
    const by = asked.get("sort") || "";
    sort(by.replace(/^-/, ""), by.startsWith("-"));
    filter();
  }

  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => {
      const again = sorted.key === head.dataset.key;
      sort(head.dataset.key, again ? !sorted.descending : head.dataset.first === "descending");
      write(filter());
    });
    head.replaceChildren(button);
  }
  for (const chip of chips) {
    chip.addEventListener("click", () => {
      chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
      write(filter());
    });
  }
  query.addEventListener("input", () => write(filter()));
  form.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", read);
  form.hidden = false;
  read();
})();
