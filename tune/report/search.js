(() => {
  const block = document.getElementById("search-data");
  if (!block) return;
  const { tips } = JSON.parse(block.textContent);
  const marks = tips.map(() => []);
  for (const mark of document.querySelectorAll("[data-t]")) marks[+mark.dataset.t].push(mark);
  const parallel = document.getElementById("parallel");
  const drawings = [...new Set([...document.querySelectorAll("svg [data-t]")].map((m) => m.ownerSVGElement))];
  const off = new Set();
  let lit = -1;

  // Hovering: one trial stands out in every chart and in the table.
  function light(t) {
    if (t === lit) return;
    for (const mark of marks[lit] || []) mark.classList.remove("on");
    for (const mark of marks[t] || []) mark.classList.add("on");
    for (const svg of drawings) svg.classList.toggle("lit", t >= 0);
    lit = t;
  }

  function tell(event, t) {
    light(t);
    if (t >= 0) show(event, tips[t]);
    else tip.hidden = true;
  }

  // Of the lines of one chart, the nearest to the pointer; each is a list of runs of points.
  function hover(svg, paths) {
    const lines = paths.map((path) => [
      +path.dataset.t,
      path.getAttribute("d").slice(1).split("M").map((run) => run.split("L").map((p) => p.split(" ").map(Number))),
    ]);
    watch(svg, (event) => {
      const box = svg.viewBox.baseVal;
      const [across, down] = inside(event, svg);
      const [x, y] = [across * box.width, down * box.height];
      let [found, least] = [-1, (16 * box.width) / svg.getBoundingClientRect().width];
      for (const [t, runs] of lines) {
        if (off.has(t)) continue;
        for (const run of runs) {
          for (let i = 0; i < run.length; i += 1) {
            const [[a, b], [c, d]] = [run[i], run[Math.min(i + 1, run.length - 1)]];
            if (x < a - 6 || x > c + 6) continue;
            const along = c > a ? Math.min(1, Math.max(0, (x - a) / (c - a))) : 0;
            const slope = c > a ? (d - b) / (c - a) : 0;
            const distance = Math.abs(b + along * (d - b) - y) / Math.hypot(1, slope);
            if (distance < least) [found, least] = [t, distance];
          }
        }
      }
      tell(event, found);
    }, () => light(-1));
  }

  function hoverPoints(svg) {
    const circles = [...svg.querySelectorAll("circle[data-t]")];
    const points = circles.map((c) => [+c.getAttribute("cx"), +c.getAttribute("cy")]);
    watch(svg, (event) => {
      const box = svg.viewBox.baseVal;
      const [across, down] = inside(event, svg);
      const there = points.map((p, i) => (off.has(+circles[i].dataset.t) ? [Infinity, Infinity] : p));
      const [i, distance] = nearest(there, across * box.width, down * box.height);
      tell(event, distance < 14 ? +circles[i].dataset.t : -1);
    }, () => light(-1));
  }

  hover(parallel, [...parallel.querySelectorAll("path[data-t]")]);
  const curves = document.getElementById("curves-chart");
  if (curves) hover(curves, [...curves.querySelectorAll("path[data-t]")]);
  for (const svg of document.querySelectorAll(".slice svg")) hoverPoints(svg);
  for (const dot of document.querySelectorAll("[data-tip]")) watch(dot, (event) => show(event, dot.dataset.tip));

  // Brushing: a range on an axis keeps the trials inside it, here and everywhere below.
  const [top, bottom] = [+parallel.dataset.top, +parallel.dataset.bottom];
  const ranges = new Map();
  const kept = document.getElementById("kept");
  const all = document.getElementById("all");
  const places = new Map();
  for (const path of parallel.querySelectorAll("path[data-t]")) {
    const points = path.getAttribute("d").slice(1).split(/[ML]/).map((p) => p.split(" ").map(Number));
    places.set(+path.dataset.t, new Map(points));
  }

  function filter() {
    off.clear();
    marks.forEach((own, t) => {
      for (const [x, [low, high]] of ranges) {
        const y = places.has(t) ? places.get(t).get(x) : undefined;
        if (y === undefined || y < low || y > high) off.add(t);
      }
      for (const mark of own) mark.classList.toggle("off", off.has(t));
    });
    kept.textContent = ranges.size ? `${tips.length - off.size} of ${tips.length} trials kept` : "";
    all.hidden = !ranges.size;
  }

  for (const axis of parallel.querySelectorAll(".axis")) {
    const grip = axis.querySelector(".grip");
    const brush = axis.querySelector(".brush");
    const x = +axis.dataset.x;
    let start = null;
    const height = (event) => {
      const y = inside(event, parallel)[1] * parallel.viewBox.baseVal.height;
      return Math.min(bottom + 1, Math.max(top - 1, y));
    };
    const clear = () => {
      ranges.delete(x);
      brush.setAttribute("visibility", "hidden");
    };
    grip.addEventListener("pointerdown", (event) => {
      start = height(event);
      // Only a real pointer can be held; a script's own events have none.
      if (event.isTrusted) grip.setPointerCapture(event.pointerId);
    });
    grip.addEventListener("pointermove", (event) => {
      if (start === null) return;
      const [low, high] = [start, height(event)].sort((a, b) => a - b);
      if (high - low < 3) return;
      ranges.set(x, [low, high]);
      brush.setAttribute("y", low);
      brush.setAttribute("height", high - low);
      brush.setAttribute("visibility", "visible");
      filter();
    });
    grip.addEventListener("pointerup", (event) => {
      if (start !== null && Math.abs(height(event) - start) < 3) clear();
      start = null;
      filter();
    });
    grip.addEventListener("pointercancel", () => (start = null));
    all.addEventListener("click", () => (clear(), filter()));
  }
})();

(() => {
  const table = document.getElementById("trials-table");
  if (!table) return;
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const text = row.cells[column].dataset.v;
    return text === "" ? null : isNaN(text) ? text : +text;
  };
  const compare = (a, b) => (typeof a === typeof b ? (a > b) - (a < b) : typeof a === "number" ? -1 : 1);
  heads.forEach((head, column) => {
    head.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const rows = [...body.rows].sort((one, two) => {
        const [a, b] = [value(one, column), value(two, column)];
        if (a === null || b === null) return (a === null) - (b === null); // unknown ones last
        return (falling ? -1 : 1) * compare(a, b);
      });
      body.append(...rows);
    });
  });
})();

for (const button of document.querySelectorAll("[data-copy]")) {
  const source = document.getElementById(button.dataset.copy);
  button.addEventListener("click", async () => {
    let done = true;
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      getSelection().selectAllChildren(source); // no clipboard in this place: mark it for Ctrl+C
      done = document.execCommand("copy");
    }
    button.textContent = done ? "Copied" : "Press Ctrl+C";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}
