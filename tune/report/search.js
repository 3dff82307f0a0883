(() => {
  const block = document.getElementById("search-figures");
  if (!block) return;
  const rows = new Map([...document.querySelectorAll("#trials-table [data-t]")].map((row) => [row.dataset.t, row]));
  const heads = [...document.querySelectorAll("#trials-table thead th")].map((head) => head.textContent);
  const plots = [...document.querySelectorAll("[data-figure]")];
  const parallel = plots.find((plot) => plot.dataset.figure === "parallel");
  const all = document.getElementById("all");
  const off = new Set();
  let pointer = null; // the last event of the pointer: plotly tells where lines are, but not it
  let lit = null;

  // The type and colours of the page, for all figures.
  const small = { color: "var(--muted)", size: 12 };
  const axis = {
    fixedrange: true, gridcolor: "var(--line)", linecolor: "var(--line)", tickfont: small, title: { font: small },
    zeroline: false,
  };
  const template = {
    layout: {
      dragmode: false, font: { color: "var(--ink)", family: getComputedStyle(document.body).fontFamily, size: 13 },
      hovermode: "closest", margin: { b: 28, l: 34, r: 12, t: 8 }, paper_bgcolor: "transparent",
      plot_bgcolor: "transparent", showlegend: false, uirevision: "kept", xaxis: { ...axis, showgrid: false }, yaxis: axis,
    },
    data: {
      parcoords: [{
        labelfont: { size: 14 }, rangefont: { color: "transparent", size: 1 }, tickfont: small,
        line: {
          cmin: 0, cmax: 1.2, // shares of trials that are worse; above 1: the default, the best
          colorscale: [
            [0, "var(--faint)"], [0.35, "var(--faint)"], [0.84, "var(--accent)"],
            [0.85, "var(--ink)"], [0.95, "var(--ink)"], [0.96, "var(--best)"], [1, "var(--best)"],
          ],
        },
        unselected: { line: { color: "var(--faint)", opacity: 0.12 } },
      }],
    },
  };

  function draw() {
    const style = getComputedStyle(document.documentElement);
    const resolve = (text) => JSON.parse(text.replace(/var\((--[a-z]+)\)/g, (_, name) => style.getPropertyValue(name).trim()));
    const [figures, look] = [resolve(block.textContent), resolve(JSON.stringify(template))];
    for (const plot of plots) {
      const { data, layout } = figures[plot.dataset.figure];
      layout.template = look;
      Plotly.react(plot, data, layout, { displayModeBar: false, doubleClick: false, responsive: true });
    }
  }

  // Plotly draws every point, or line of a trial, as an element: give each its trial's number.
  function tag(plot) {
    const mark = (element, t) => {
      element.dataset.t = t;
      element.classList.add(...rows.get(t).classList);
      element.classList.toggle("off", off.has(t));
    };
    plot.querySelectorAll(".scatterlayer .trace").forEach((trace, i) => {
      const trials = plot.data[i].customdata;
      if (plot.dataset.figure === "curves") mark(trace, trials[0]);
      if (plot.dataset.figure.startsWith("slice")) {
        trace.querySelectorAll(".point").forEach((point, j) => mark(point, trials[j]));
      }
    });
  }

  // Hovering: one trial stands out in every chart and in the table.
  function light(t) {
    if (t === lit) return;
    lit = t;
    for (const mark of document.querySelectorAll("[data-t].on")) mark.classList.remove("on");
    for (const mark of document.querySelectorAll(`[data-t="${t}"]`)) mark.classList.add("on");
    for (const plot of plots) plot.classList.toggle("lit", t !== null);
  }

  function words(t) {
    const [name, state, objective, , epochs, , ...values] = [...rows.get(t).cells].map((cell) => cell.textContent);
    const params = values.map((value, i) => `\n${heads[i + 5]} ${value}`);
    return `trial ${name}, ${state}\nobjective ${objective}% at epoch ${epochs}${params.join("")}`;
  }

  function leave() {
    light(null);
    tip.hidden = true;
  }

  // Brushing: a range on an axis keeps the trials inside it, here and everywhere below.
  function filter() {
    off.clear();
    const { dimensions, customdata } = parallel.data[0];
    const brushed = dimensions.filter((dimension) => dimension.constraintrange);
    const within = (value, range) => range[0] <= value && value <= range[1];
    const kept = customdata.filter((_, row) => brushed.every(({ values, constraintrange }) =>
      [constraintrange].flat(Array.isArray(constraintrange[0]) ? 1 : 0).some((range) => within(values[row], range))));
    if (brushed.length) for (const t of rows.keys()) if (!kept.includes(t)) off.add(t);
    for (const mark of document.querySelectorAll("[data-t]")) mark.classList.toggle("off", off.has(mark.dataset.t));
    document.getElementById("kept").textContent = brushed.length ? `${kept.length} of ${rows.size} trials kept` : "";
    all.hidden = !brushed.length;
  }

  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  for (const plot of plots) {
    tag(plot);
    plot.on("plotly_afterplot", () => tag(plot));
    for (const kind of ["pointermove", "pointerdown"]) plot.addEventListener(kind, (event) => (pointer = event), true);
    plot.addEventListener("pointerleave", leave);
    plot.on("plotly_unhover", leave);
    plot.on("plotly_hover", ({ points, curveNumber }) => {
      const told = points ? points[0].customdata : parallel.data[0].customdata[curveNumber];
      if (plot.dataset.figure === "tested") {
        const [x, y] = [points[0].x, points[0].y].map((share) => share.toFixed(1));
        show(pointer, `${told}\nvalidation ${x}%\ntest ${y}%`);
      } else if (!off.has(told)) {
        light(told);
        show(pointer, words(told));
      }
    });
  }
  if (parallel) {
    parallel.on("plotly_restyle", filter);
    all.addEventListener("click", () => {
      const names = parallel.data[0].dimensions.map((_, i) => `dimensions[${i}].constraintrange`);
      Plotly.restyle(parallel, Object.fromEntries(names.map((name) => [name, null])));
      filter();
    });
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
