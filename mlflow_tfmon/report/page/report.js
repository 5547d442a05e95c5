"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const wantsDark = matchMedia("(prefers-color-scheme: dark)");
  const drawn = [];
  const chosen = { axis: "step", smoothing: 0, layer: "", run: null, range: null }; // of all charts; the range as the axis has it
  let printing = false;

  const AXES = { step: "step", epoch: "epoch", minutes: "minutes since the first step" };
  // Viridis, which is also told apart by lightness alone.
  const VIRIDIS = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"];
  const MOST_ROWS = 3; // of a legend; a longer one is leafed through
  const MOST_LABELS = 60; // of a heat map, each of which has room
  const FEWEST = 100; // points of a curve that is smoothed: one of epochs would only lag behind
  const LINES = ["solid", "dashed", "dotted"];
  const USUAL = 0.98; // of the values of a panel whose outliers stick out of its axis
  const FAINT = 0.6, FAINTER = 0.15; // opacity
  const LABEL = 6.8; // pixels that a letter of a label is wide, about

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const number = (value) => {
    if (value === null || value === undefined || !isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-4 || size >= 1e6)) return value.toExponential(2).replace(/\.?0*e\+?/, "e");
    return String(Number(value.toPrecision(4)));
  };

  /** A step as the axis has it: between two steps of the clock, what is between. */
  function at(step, run) {
    if (chosen.axis === "step") return step;
    const steps = data.clocks[run].step, values = data.clocks[run][chosen.axis];
    let low = 0, high = steps.length - 1;
    if (step <= steps[0]) return values[0];
    if (step >= steps[high]) return values[high];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (steps[middle] <= step) low = middle; else high = middle;
    }
    const share = (step - steps[low]) / (steps[high] - steps[low]);
    return values[low] + share * (values[high] - values[low]);
  }

  function frame() {
    const ink = colour("--soft"), line = colour("--line");
    return {
      animation: false,
      aria: { enabled: false },
      textStyle: { fontFamily: "system-ui, sans-serif", color: ink },
      axis: {
        axisLine: { lineStyle: { color: ink } }, axisLabel: { color: ink, hideOverlap: true },
        splitLine: { lineStyle: { color: line } }, nameTextStyle: { color: ink },
      },
      tooltip: {
        renderMode: "richText", confine: true, backgroundColor: colour("--card"), borderColor: line,
        textStyle: { color: colour("--ink"), fontSize: 12 },
      },
    };
  }

  /** A curve's name without that of its run, which its colour tells. */
  const own = (curve) => data.runs.length ? curve.name.slice(data.runs[curve.run].length + " · ".length) : curve.name;

  /** How many rows the names in a legend take, each with its sign and a space. */
  function legendRows(names, width) {
    let rows = 1, left = width;
    for (const name of names) {
      const needs = 36 + 6.8 * name.length;
      if (needs > left && left < width) { rows += 1; left = width; }
      left -= needs;
    }
    return rows;
  }

  /** The curves of a panel; of a layer that is chosen and has none, as the heat map of all variables tells them. */
  function curvesOf(panel) {
    const there = panel.curves.filter((curve) => chosen.run === null || curve.run === chosen.run);
    const of_layers = there.some((curve) => curve.layer);
    const all = data.panels[panel.key.replace(/ by layer$/, " of all")];
    if (!chosen.layer || !of_layers || all === undefined || all === panel || there.some((curve) => curve.layer === chosen.layer)) return there;
    const picture = all.choices[0];
    const added = picture.layers.map((layer, row) => layer !== chosen.layer ? null : {
      name: picture.rows[row], run: 0, layer, faint: false,
      points: picture.cells.filter((cell) => cell[1] === row).map(([column, , value]) => [picture.steps[column], value]),
    });
    return [...there, ...added.filter(Boolean).reverse()];
  }

  /** The points within the range that is looked at, and the nearest on either side of it. */
  function within(points) {
    if (chosen.range === null) return points;
    const [from, to] = chosen.range;
    return points.filter((point, index) =>
      (index + 1 < points.length ? points[index + 1][0] : point[0]) >= from && (index ? points[index - 1][0] : point[0]) <= to);
  }

  /** Exponentially weighted means; the first ones are not drawn towards zero. */
  function smoothed(points) {
    let sum = 0, weight = 0;
    return points.map(([x, value, step]) => {
      sum = chosen.smoothing * sum + value;
      weight = chosen.smoothing * weight + 1;
      return [x, Number((sum / weight).toPrecision(6)), step]; // what is constant stays so
    });
  }

  /** The values at which a linear axis ends, where ECharts is not to choose them by the largest one. */
  function ends(panel, series) {
    const values = series.flatMap((one) => one.data.map((point) => point[1])).sort((a, b) => a - b);
    const most = values[values.length - 1];
    if (panel.share) return { min: 0, ...(most > 0.5 && most <= 1 ? { max: 1 } : {}) };
    const usual = 2 * values[Math.floor(USUAL * (values.length - 1))]; // what is above sticks out of the axis
    return panel.outliers && usual > 0 && most > usual ? { max: Number(usual.toPrecision(2)) } : {};
  }

  function curves(panel, figure) {
    const look = frame();
    const log = figure.log;
    const many = data.runs.length > 0;
    const found = curvesOf(panel);
    const series = [];
    figure.lines = []; // what the pointer tells of
    found.forEach((curve, index) => {
      const points = curve.points
        .filter(([, value]) => !log || value > 0)
        .map(([step, value]) => [at(step, curve.run), value, step]);
      const nth = many ? found.slice(0, index).filter((other) => other.run === curve.run).length : index;
      const aside = chosen.layer && curve.layer && curve.layer !== chosen.layer;
      const opacity = aside ? FAINTER : curve.faint ? FAINT : 1;
      const line = {
        type: "line", name: own(curve), z: curve.faint || aside ? 1 : 2,
        symbolSize: 5, symbol: ["circle", "rect", "triangle", "diamond"][nth % 4],
        color: colour(`--c${(many ? curve.run : index) % 8}`),
        lineStyle: {
          width: curve.faint || aside ? 1 : 1.8, opacity,
          type: LINES[(many ? nth : Math.floor(index / 8)) % 3],
        },
        itemStyle: { opacity },
        emphasis: { focus: "series" },
      };
      const smooth = chosen.smoothing > 0 && points.length >= FEWEST;
      const shown = smooth ? smoothed(points) : points;
      const seen = within(shown);
      series.push({ ...line, data: seen, showSymbol: seen.length < 40 }); // the legend has the look of the first
      if (smooth) {
        series.push({
          ...line, data: within(points), showSymbol: false, z: 1, silent: true,
          lineStyle: { ...line.lineStyle, width: 1, opacity: opacity * 0.3 },
        });
      }
      if (!aside && (figure.only === null || figure.only === own(curve))) figure.lines.push({ name: curve.name, points: shown });
    });
    if (!series.length) return look;
    const first = series[0];
    const areas = [];
    if (panel.band) {
      areas.push([{ yAxis: panel.band[0], itemStyle: { color: colour("--healthy") } }, { yAxis: panel.band[1] }]);
    }
    if (figure.marked) {
      const [from, to] = figure.marked.map((step) => at(step, 0));
      areas.push([{ xAxis: from, itemStyle: { color: colour("--bad"), opacity: 0.12 } }, { xAxis: Math.max(to, from) }]);
    }
    if (areas.length) first.markArea = { silent: true, data: areas };
    const lines = panel.marks.slice(0, 50).map((step) => ({
      xAxis: at(step, 0), lineStyle: { color: colour("--bad"), type: "dotted", width: 1 }, label: { show: false },
    }));
    data.seams.forEach((seams, run) => seams.slice(0, 20).forEach(([step, what]) => lines.push({
      xAxis: at(step, run), name: what, lineStyle: { color: colour(many ? `--c${run % 8}` : "--soft"), type: "dashed", width: 1 },
      label: { show: seams.length < 4 && !many, position: "insideEndTop", formatter: what, color: colour("--soft"), fontSize: 11 },
    })));
    if (lines.length) first.markLine = { silent: true, symbol: "none", animation: false, data: lines };
    const names = [...new Set(found.map(own))];
    const legend = names.length > 1;
    const needed = legendRows(names, figure.chart.getWidth());
    const rows = needed > MOST_ROWS ? 1 : needed;
    const grey = many ? { color: colour("--soft") } : {};
    return {
      ...look,
      grid: { left: 8, right: 16, top: legend ? 14 + 23 * rows : 14, bottom: 26, containLabel: true },
      legend: {
        show: legend, type: needed > MOST_ROWS ? "scroll" : "plain", data: names.map((name) => ({ name, itemStyle: grey, lineStyle: grey })), top: 0, left: 0, padding: [4, 0], itemWidth: 22, itemHeight: 12,
        selected: Object.fromEntries(names.map((name) => [name, figure.only === null || name === figure.only])),
        inactiveColor: colour("--line"),
        textStyle: { color: colour("--ink"), fontSize: 12, lineHeight: 20 }, pageTextStyle: { color: colour("--soft") },
        pageIconColor: colour("--ink"), pageIconInactiveColor: colour("--line"),
      },
      xAxis: {
        ...look.axis, type: "value", min: chosen.range ? chosen.range[0] : "dataMin", max: chosen.range ? chosen.range[1] : "dataMax",
        name: AXES[chosen.axis], nameLocation: "middle", nameGap: 26, splitLine: { show: false },
        axisLabel: { ...look.axis.axisLabel, formatter: number, showMinLabel: true, showMaxLabel: false },
      },
      yAxis: {
        ...look.axis, type: log ? "log" : "value", scale: true,
        ...(log ? {} : ends(panel, series)),
        axisLabel: { ...look.axis.axisLabel, formatter: number },
      },
      tooltip: { ...look.tooltip, trigger: "axis", formatter: (points) => told(panel, figure, points[0].value) },
      toolbox: { show: true, itemSize: 0, feature: { dataZoom: { yAxisIndex: "none" } } },
      dataZoom: [{ type: "inside", zoomOnMouseWheel: "ctrl", moveOnMouseMove: false, preventDefaultMouseMove: false }],
      series,
    };
  }

  /** What the pointer is at: the step, and the value of each curve that is nearest to it. */
  function told(panel, figure, [place, , step]) {
    const head = `step ${step}` + (chosen.axis === "step" ? "" : `, ${number(place)} ${chosen.axis}`);
    const unit = panel.unit && ` ${panel.unit}`;
    const rows = figure.lines.filter((line) => line.points.length).map(({ name, points }) => {
      const near = points.reduce((one, other) => Math.abs(other[0] - place) < Math.abs(one[0] - place) ? other : one);
      return `${name}: ${number(near[1])}${unit}` + (near[2] === step ? "" : ` (step ${near[2]})`);
    });
    return [head, ...rows.slice(0, 16)].join("\n");
  }

  function cells(panel, figure) {
    const look = frame();
    const choice = panel.choices[figure.chosen];
    const values = choice.cells.map((cell) => cell[2]);
    const least = values.reduce((a, b) => Math.min(a, b), Infinity);
    const most = values.reduce((a, b) => Math.max(a, b), -Infinity);
    // By the root of a share, else the tails of a distribution are all one colour.
    const shade = panel.log ? Math.log10 : Math.sqrt;
    const numeric = choice.rows.every((row) => !isNaN(row));
    const longest = Math.max(...choice.rows.map((row) => row.length)) * LABEL + 8;
    return {
      ...look,
      grid: { left: 14, right: 76, top: 10, bottom: 26, containLabel: true },
      xAxis: {
        ...look.axis, type: "category", data: choice.steps.map((step) => number(at(step, 0))), name: AXES[chosen.axis],
        nameLocation: "middle", nameGap: 26, splitLine: { show: false },
      },
      yAxis: {
        ...look.axis, type: "category", data: choice.rows, splitLine: { show: false },
        axisLabel: {
          ...look.axis.axisLabel, fontSize: 11, width: Math.min(longest, figure.chart.getWidth() * 0.45), overflow: "break",
          ...(numeric || choice.rows.length > MOST_LABELS ? {} : { interval: 0, hideOverlap: false }),
        },
      },
      visualMap: {
        dimension: 3, min: shade(least), max: most > least ? shade(most) : shade(least) + 1, calculable: false, right: 0, top: "middle", itemHeight: 150,
        itemWidth: 12, text: [number(most), number(least)], textStyle: { color: colour("--soft") },
        inRange: { color: VIRIDIS },
      },
      tooltip: {
        ...look.tooltip,
        formatter: ({ value }) =>
          `step ${choice.steps[value[0]]}\n${choice.rows[value[1]]}\n${panel.scale}: ${number(value[2])}`,
      },
      series: [{ type: "heatmap", data: choice.cells.map((cell) => [...cell, shade(cell[2])]), encode: { x: 0, y: 1, value: 3 }, progressive: 0, emphasis: { itemStyle: { borderColor: colour("--ink") } } }],
    };
  }

  const isCurves = (figure) => data.panels[figure.key].kind === "curves";

  function draw(figure) {
    const panel = data.panels[figure.key];
    figure.chart.setOption(panel.kind === "curves" ? curves(panel, figure) : cells(panel, figure), true);
    if (panel.kind === "curves") {
      figure.chart.dispatchAction({ type: "takeGlobalCursor", key: "dataZoomSelect", dataZoomSelectActive: true });
    }
  }

  /** Draws the charts anew, once what is being done is over: a chart takes nothing new in its own event. */
  let due = 0;
  function redraw() {
    cancelAnimationFrame(due);
    due = requestAnimationFrame(() => drawn.filter(isCurves).forEach(draw));
  }

  function zoom(range) {
    chosen.range = range;
    document.getElementById("whole").hidden = range === null;
    redraw();
  }

  /** Shows the pointer at the same place in all other charts that are on the screen. */
  function point(place, source) {
    for (const figure of drawn) {
      if (figure === source || !isCurves(figure)) continue;
      const box = figure.element.getBoundingClientRect();
      const x = place === null ? NaN : figure.chart.convertToPixel({ xAxisIndex: 0 }, place);
      const y = figure.chart.getHeight() / 2;
      if (box.bottom > 0 && box.top < innerHeight && figure.chart.containPixel("grid", [x, y])) {
        figure.chart.dispatchAction({ type: "showTip", x, y });
      } else if (figure.pointed) {
        figure.chart.dispatchAction({ type: "updateAxisPointer", currTrigger: "leave" });
        figure.chart.dispatchAction({ type: "hideTip" });
      } else continue;
      figure.pointed = !isNaN(x);
    }
  }

  function listen(figure) {
    const surface = figure.chart.getZr();
    let next = 0;
    surface.on("mousemove", ({ offsetX, offsetY }) => {
      cancelAnimationFrame(next);
      const inside = figure.chart.containPixel("grid", [offsetX, offsetY]);
      const place = inside ? figure.chart.convertFromPixel({ xAxisIndex: 0 }, offsetX) : null;
      next = requestAnimationFrame(() => point(place, figure));
    });
    surface.on("globalout", () => { cancelAnimationFrame(next); point(null, figure); });
    figure.chart.on("datazoom", () => zoom([...figure.chart.getModel().getComponent("xAxis", 0).axis.scale.getExtent()]));
    figure.chart.on("legendselectchanged", ({ name }) => {
      figure.only = figure.only === name ? null : name;
      requestAnimationFrame(() => draw(figure));
    });
    figure.element.querySelector(".chart").addEventListener("dblclick", () => zoom(null));
  }

  function tool(kind, figure, build) {
    const element = document.createElement(kind);
    build(element);
    figure.element.querySelector(".tools").append(element);
  }

  function choose(figure, index) {
    const panel = data.panels[figure.key];
    const text = panel.choices[index].text;
    figure.chosen = index;
    figure.element.querySelector("select").value = String(index);
    figure.element.querySelector(".said").textContent = text;
    figure.element.querySelector(".chart").setAttribute("aria-label", `${panel.title}. ${text}`);
    draw(figure);
  }

  function begin(element) {
    const panel = data.panels[element.dataset.panel];
    const space = element.querySelector(".chart");
    const figure = {
      element, key: element.dataset.panel, log: Boolean(panel.log), chosen: 0, only: null, lines: [], pointed: false,
      marked: element.dataset.from === undefined ? null : [Number(element.dataset.from), Number(element.dataset.to)],
    };
    if (panel.kind === "cells") {
      const rows = Math.max(...panel.choices.map((choice) => choice.rows.length));
      if (panel.log || rows > MOST_LABELS) space.style.height = `${Math.max(290, Math.min(1000, 60 + (panel.log ? 16 : 9) * rows))}px`;
    }
    figure.chart = echarts.init(space, null, { renderer: "svg" });
    if (panel.kind === "curves") {
      listen(figure);
      const values = panel.curves.flatMap((curve) => curve.points.map((one) => one[1]));
      if (values.some((value) => value > 0)) tool("button", figure, (button) => {
        const say = () => { button.textContent = figure.log ? "Use a linear scale" : "Use a log scale"; };
        button.type = "button";
        button.title = values.every((value) => value > 0) ? "" : "A log scale leaves out what is not above 0";
        button.onclick = () => { figure.log = !figure.log; say(); draw(figure); };
        say();
      });
    } else if (panel.choices.length > 1) {
      tool("select", figure, (select) => {
        select.setAttribute("aria-label", `${panel.title}: which variable`);
        panel.choices.forEach((choice, index) => select.append(new Option(choice.name, index)));
        select.onchange = () => choose(figure, Number(select.value));
      });
    }
    drawn.push(figure);
    draw(figure);
  }

  function repaint() {
    document.documentElement.classList.toggle("dark", wantsDark.matches && !printing);
    document.querySelectorAll("[data-run]").forEach((name) => {
      name.style.color = colour(`--c${Number(name.dataset.run) % 8}`);
    });
    drawn.forEach((figure) => { figure.chart.resize(); draw(figure); });
  }

  /** Offers the layers that any chart is of, without what all their names begin with. */
  function offerLayers() {
    const panels = Object.values(data.panels);
    const layers = [...new Set(panels.flatMap((panel) => panel.kind === "curves"
      ? panel.curves.map((curve) => curve.layer)
      : panel.choices.flatMap((choice) => [...choice.layers].reverse())))].filter(Boolean);
    if (layers.length < 2) return;
    const head = layers[0].split(".")[0] + ".";
    const shared = layers.every((layer) => layer.startsWith(head)) ? head.length : 0;
    const label = document.getElementById("layers");
    const select = label.querySelector("select");
    layers.forEach((layer) => select.append(new Option(layer.slice(shared), layer)));
    label.hidden = false;
    select.onchange = () => {
      chosen.layer = select.value;
      for (const figure of drawn) {
        const panel = data.panels[figure.key];
        const index = panel.kind === "cells" && panel.choices.length > 1
          ? panel.choices.findIndex((choice) => choice.layers.length === 1 && choice.layers[0] === chosen.layer) : -1;
        if (index >= 0) choose(figure, index);
      }
      redraw();
    };
  }

  repaint();
  const moves = (name) => data.clocks.some((clock) => clock[name].some((value) => value !== clock[name][0]));
  document.querySelectorAll("input[name=axis]").forEach((input) => {
    input.disabled = !moves(input.value);
    input.onchange = () => {
      chosen.axis = input.value;
      zoom(null);
      drawn.filter((figure) => !isCurves(figure)).forEach(draw);
    };
  });
  document.getElementById("smoothing").oninput = ({ target }) => { chosen.smoothing = Number(target.value); redraw(); };
  document.getElementById("whole").onclick = () => zoom(null);
  document.querySelectorAll("button[data-run]").forEach((button) => {
    button.onclick = () => {
      const run = Number(button.dataset.run);
      chosen.run = chosen.run === run ? null : run;
      document.querySelectorAll("button[data-run]").forEach((other) => {
        other.setAttribute("aria-pressed", String(Number(other.dataset.run) === chosen.run));
      });
      redraw();
    };
  });
  const PNG = "data:image/png;base64,";
  document.querySelectorAll("[data-slides]").forEach((part) => {
    const { labels, cells, right } = data.slides[Number(part.dataset.slides)];
    part.querySelector("input").oninput = ({ target }) => {
      const at = Number(target.value);
      part.querySelector("output").textContent = labels[at];
      part.querySelectorAll("tbody tr").forEach((row, example) => {
        row.className = right[at][example] === null ? "" : right[at][example] ? "right" : "wrong";
        row.querySelectorAll(".changes").forEach((cell, column) => {
          const text = cells[at][example][column];
          if (!text.startsWith(PNG)) { cell.textContent = text; return; }
          const picture = new Image();
          picture.className = "picture";
          picture.src = text;
          picture.alt = cell.dataset.name;
          cell.replaceChildren(picture);
        });
      });
    };
  });
  // By hand: within MLflow's page the address of a part of this one would be an address of that one.
  document.querySelectorAll(".contents a").forEach((link) => {
    link.onclick = (event) => {
      event.preventDefault();
      document.getElementById(link.getAttribute("href").slice(1)).scrollIntoView();
    };
  });
  document.querySelectorAll("figure[data-panel]").forEach(begin);
  offerLayers();
  wantsDark.addEventListener("change", repaint);
  addEventListener("resize", () => drawn.forEach((figure) => figure.chart.resize()));
  addEventListener("beforeprint", () => { printing = true; repaint(); });
  addEventListener("afterprint", () => { printing = false; repaint(); });
  document.documentElement.dataset.drawn = String(drawn.length);
})();
