(() => {
  for (const strip of document.querySelectorAll("img.strip")) {
    const names = JSON.parse(strip.dataset.names);
    watch(strip, (event) => {
      const [x] = inside(event, strip);
      show(event, names[Math.floor(x * names.length)] || "class not known");
    });
  }

  for (const svg of document.querySelectorAll("svg[data-points]")) {
    const points = JSON.parse(svg.dataset.points);
    const labels = JSON.parse(svg.dataset.labels);
    const cursor = svg.querySelector(".cursor");
    watch(svg, (event) => {
      const x = inside(event, svg)[0] * svg.viewBox.baseVal.width;
      const [i] = nearest(points.map(([a]) => [a, 0]), x, 0);
      cursor.setAttribute("cx", points[i][0]);
      cursor.setAttribute("cy", points[i][1]);
      cursor.setAttribute("visibility", "visible");
      show(event, labels[i]);
    }, () => cursor.setAttribute("visibility", "hidden"));
  }

  for (const svg of document.querySelectorAll("svg[data-bars]")) {
    const labels = JSON.parse(svg.dataset.bars);
    watch(svg, (event) => show(event, labels[Math.floor(inside(event, svg)[0] * labels.length)]));
  }

  // The maps' colours hold the figures: the place in the palette is read back from the pixels.
  for (const group of document.querySelectorAll(".heatmaps")) {
    const { names, seen, limit, palette } = JSON.parse(group.dataset.maps);
    const colours = palette.match(/.{6}/g).map((hex) => parseInt(hex, 16));
    const places = new Map(colours.map((colour, place) => [colour, place]));
    const maps = [...group.querySelectorAll("figure")].map((figure) => ({
      title: figure.querySelector("b").textContent.toLowerCase(),
      image: figure.querySelector("img"),
    }));
    const role = (i) => (i < seen ? "seen" : "unseen");
    const value = (map, x, y) => {
      if (!map.pixels) {
        const canvas = document.createElement("canvas");
        canvas.width = canvas.height = names.length;
        const context = canvas.getContext("2d", { willReadFrequently: true });
        context.drawImage(map.image, 0, 0);
        map.pixels = context;
      }
      const [r, g, b] = map.pixels.getImageData(x, y, 1, 1).data;
      const last = colours.length - 1;
      const place = places.get((r << 16) | (g << 8) | b);
      const beyond = place === last ? "\u2265 " : place === 0 ? "\u2264 " : "";
      return beyond + (((2 * place) / last - 1) * limit).toFixed(2);
    };
    for (const { image } of maps) {
      watch(image, (event) => {
        const [x, y] = inside(event, image).map((share) => Math.floor(share * names.length));
        const lines = [`${names[y]} (${role(y)}) and ${names[x]} (${role(x)})`];
        for (const map of maps) lines.push(`${map.title}: ${value(map, x, y)}`);
        show(event, lines.join("\n"));
      });
    }
  }

  const svg = document.getElementById("tsne");
  if (svg) {
    const data = JSON.parse(document.getElementById("tsne-data").textContent);
    const picker = document.getElementById("tsne-class");
    const light = (cluster) => {
      for (const group of svg.querySelectorAll("g")) {
        group.classList.toggle("on", cluster !== null && +group.dataset.k === cluster);
      }
      svg.classList.toggle("lit", cluster !== null);
    };
    const pick = () => {
      const chosen = picker.value ? +picker.value : -1;
      light(null);
      for (const mark of svg.querySelectorAll("[data-i]")) {
        mark.classList.toggle("on", data.class[+mark.dataset.i] === chosen);
      }
      svg.classList.toggle("picked", chosen >= 0);
    };
    picker.addEventListener("change", pick);
    watch(svg, (event) => {
      const [x, y] = inside(event, svg);
      const box = svg.viewBox.baseVal;
      const [i, distance] = nearest(data.points, x * box.width, y * box.height);
      const reach = Math.max(22, (22 * box.width) / svg.clientWidth);
      if (distance > reach) {
        tip.hidden = true;
        if (!picker.value) light(null);
        return;
      }
      const patch = document.createElement("span");
      patch.className = "patch";
      patch.style.setProperty("--x", i % data.columns);
      patch.style.setProperty("--y", Math.floor(i / data.columns));
      if (!picker.value) light(data.cluster[i]);
      show(event, `${data.classes[data.class[i]]}\ncluster ${data.cluster[i]}`, patch);
    }, () => picker.value || light(null));
  }
})();
