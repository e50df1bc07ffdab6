(() => {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const all = (where, what) => Array.from(where.querySelectorAll(what));

  // Theme: as the system, light or dark; kept where the browser lets a file keep something.
  const theme = byId("theme");
  const themes = ["", "light", "dark"];
  const stored = () => {
    try {
      return localStorage.getItem("kdbench-theme") || "";
    } catch {
      return "";
    }
  };
  const wear = (name) => {
    if (name) document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
    theme.textContent = `Theme: ${name || "as the system"}`;
  };
  let worn = Math.max(0, themes.indexOf(stored()));
  wear(themes[worn]);
  theme.hidden = false;
  theme.addEventListener("click", () => {
    worn = (worn + 1) % themes.length;
    wear(themes[worn]);
    try {
      localStorage.setItem("kdbench-theme", themes[worn]);
    } catch {
      // Then it holds for this visit.
    }
  });

  // Heads and names become buttons, so that keys reach them.
  const buttoned = (cell) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = cell.textContent;
    cell.replaceChildren(button);
    return button;
  };

  // Sorting: by the value of a cell, not by its text; what has no value stays last; the third click restores the order.
  const valueOf = (cell) => ("s" in cell.dataset ? cell.dataset.s : cell.textContent);
  const compare = (numeric, sign) => (a, b) => {
    if (a.value === "" || b.value === "") return (a.value === "") - (b.value === "") || a.place - b.place;
    const by = numeric ? Number(a.value) - Number(b.value) : a.value.localeCompare(b.value, "en");
    return sign * by || a.place - b.place;
  };
  const sortBy = (body, given, column, direction) => {
    const known = given.map((row, place) => ({ row, place, value: valueOf(row.cells[column]) }));
    const numeric = known.every(({ value }) => Number.isFinite(Number(value)));
    if (direction) known.sort(compare(numeric, direction === "ascending" ? 1 : -1));
    body.append(...known.map(({ row }) => row));
  };
  for (const table of all(document, "table.board")) {
    const body = table.tBodies[0];
    const given = Array.from(body.rows);
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach((head, column) => {
      const turns = head.classList.contains("l") ? ["ascending", "descending"] : ["descending", "ascending"];
      buttoned(head).addEventListener("click", () => {
        const direction = [...turns, ""][turns.indexOf(head.getAttribute("aria-sort")) + 1];
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (direction) head.setAttribute("aria-sort", direction);
        sortBy(body, given, column, direction);
      });
    });
    given.forEach((row) => buttoned(row.cells[0]));
  }

  // The filter: a row stays if its name and its table's title have every word between them.
  const sections = all(document, "section.table").map((section) => ({
    section,
    words: section.dataset.words.toLowerCase(),
    rows: all(section, ".board tbody tr").map((row) => ({ row, name: row.cells[0].textContent.toLowerCase() })),
    link: document.querySelector(`nav a[href="#${section.id}"]`),
  }));
  const total = sections.reduce((sum, { rows }) => sum + rows.length, 0);
  const filter = () => {
    const wanted = byId("words").value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { section, words, rows, link } of sections) {
      let here = 0;
      for (const { row, name } of rows) {
        row.hidden = !wanted.every((word) => words.includes(word) || name.includes(word));
        here += row.hidden ? 0 : 1;
      }
      section.hidden = here === 0;
      if (link) link.parentElement.hidden = section.hidden;
      shown += here;
    }
    byId("found").textContent = wanted.length ? `${shown} of ${total} rows` : "";
    byId("none").hidden = shown > 0;
  };
  byId("find").hidden = false;
  byId("words").addEventListener("input", filter);
  byId("find").addEventListener("submit", (event) => event.preventDefault());
  filter(); // a browser may have kept the words over a reload

  // The seeds behind a number: over it while the pointer is there, until the next tap once it was tapped.
  const box = byId("seeds");
  let pinned = null;
  const element = (name, text) => Object.assign(document.createElement(name), { textContent: text });
  const part = (cell) => {
    const heads = cell.closest("table").tHead.rows[0].cells;
    const list = document.createElement("ul");
    list.append(...cell.dataset.d.split("\n").map((line) => element("li", line.replace(/^\d+: /, "seed $&"))));
    return [element("h4", `${heads[cell.cellIndex].textContent}: ${cell.textContent}`), list];
  };
  const show = (cell, cells) => {
    box.replaceChildren(...cells.flatMap(part));
    box.hidden = false;
    const at = cell.getBoundingClientRect();
    const size = box.getBoundingClientRect();
    const below = at.bottom + 4;
    const top = below + size.height <= innerHeight ? below : at.top - size.height - 4;
    box.style.left = `${Math.max(4, Math.min(at.left, document.documentElement.clientWidth - size.width - 4))}px`;
    box.style.top = `${Math.max(4, top)}px`;
  };
  const hide = () => {
    box.hidden = true;
    pinned = null;
  };
  // Fingers only tap: a phone that sees something appear under the pointer would keep the tap to itself.
  const hovered = (event) => event.pointerType === "mouse" && !pinned && event.target.closest("[data-d]");
  document.addEventListener("pointerover", (event) => {
    const cell = hovered(event);
    if (cell) show(cell, [cell]);
  });
  document.addEventListener("pointerout", (event) => {
    if (hovered(event)) hide();
  });
  // Safari on a phone sends taps on cells only where something above them, but below the body, listens.
  document.querySelector("main").addEventListener("click", () => {});
  document.addEventListener("click", (event) => {
    if (box.contains(event.target)) return;
    const cell = event.target.closest("[data-d]");
    const again = cell === pinned;
    hide();
    if (!cell || again) return;
    pinned = cell;
    const whole = cell.matches("th") ? Array.from(cell.parentElement.cells).filter((other) => other.dataset.d) : [cell];
    show(cell, whole);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });
  document.addEventListener("scroll", (event) => box.contains(event.target) || hide(), true);
  addEventListener("resize", hide);

  // Paper shows everything.
  addEventListener("beforeprint", () => all(document, "details").forEach((each) => (each.open = true)));
})();
