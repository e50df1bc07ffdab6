// What a person does with the page made by `varied()` in madeup.py, and what is then to be seen; run after the page's script.
(() => {
  "use strict";
  const all = (what) => Array.from(document.querySelectorAll(what));
  const table = document.querySelector("table.board");
  const heads = () => Array.from(table.tHead.rows[0].cells);
  const names = () => Array.from(table.tBodies[0].rows).map((row) => row.cells[0].textContent);
  const press = (column) => {
    heads()[column].querySelector("button").click();
    return { order: names(), sort: heads()[column].getAttribute("aria-sort") };
  };
  const type = (text) => {
    const field = document.getElementById("words");
    field.value = text;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    return {
      rows: all(".board tbody tr").filter((row) => !row.hidden && !row.closest("section").hidden).length,
      sections: all("section.table").filter((section) => !section.hidden).map((section) => section.id),
      said: document.getElementById("found").textContent,
      nothing: !document.getElementById("none").hidden,
    };
  };
  const box = document.getElementById("seeds");
  const seen = () => ({ hidden: box.hidden, lines: Array.from(box.querySelectorAll("h4, li")).map((x) => x.textContent) });
  const pointer = (node, kind, by = "mouse") => {
    node.dispatchEvent(new PointerEvent(kind, { bubbles: true, pointerType: by }));
  };
  const row = (name) => Array.from(table.tBodies[0].rows).find((each) => each.cells[0].textContent === name);

  const found = { given: names(), heads: heads().map((head) => head.textContent) };
  found.accuracy = [press(2), press(2), press(2)];
  found.method = [press(0), press(0)];
  found.gain = press(3);
  found.old = heads()[0].getAttribute("aria-sort");
  found.filters = ["fancy", "trio", "TRIO plain", "open", "nothing-like-it", ""].map(type);
  const cell = row("wild").cells[2];
  pointer(cell, "pointerover", "touch");
  found.touched = seen().hidden;
  pointer(cell, "pointerover");
  found.over = seen();
  pointer(cell, "pointerout");
  found.out = seen().hidden;
  cell.click();
  found.tap = seen();
  pointer(row("plain").cells[2], "pointerover");
  found.stays = seen().lines[0];
  cell.click();
  found.again = seen().hidden;
  row("fancy").cells[0].querySelector("button").click();
  found.whole = seen();
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
  found.escaped = seen().hidden;
  const theme = document.getElementById("theme");
  found.themes = [1, 2, 3].map(() => {
    theme.click();
    return [document.documentElement.dataset.theme || "", theme.textContent];
  });
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
})();
