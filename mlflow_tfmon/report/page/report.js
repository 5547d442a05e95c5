"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const wantsDark = matchMedia("(prefers-color-scheme: dark)");
  const drawn = [];
  let axis = "step";
  let printing = false;

  const AXES = { step: "step", epoch: "epoch", minutes: "minutes since the first step" };
  // Viridis, which is also told apart by lightness alone.
  const VIRIDIS = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"];
  const MOST_ROWS = 3; // of a legend; a longer one is leafed through
  const LINES = ["solid", "dashed", "dotted"];

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const number = (value) => {
    if (value === null || value === undefined || !isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-4 || size >= 1e6)) return value.toExponential(2).replace(/\.?0*e\+?/, "e");
    return String(Number(value.toPrecision(4)));
  };

  /** A step as the axis has it: between two steps of the clock, what is between. */
  function at(step, run) {
    if (axis === "step") return step;
    const steps = data.clocks[run].step, values = data.clocks[run][axis];
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

  function curves(panel, figure) {
    const look = frame();
    const log = figure.log;
    const many = data.runs.length > 0;
    const series = panel.curves.map((curve, index) => {
      const points = curve.points
        .filter(([, value]) => !log || value > 0)
        .map(([step, value]) => [at(step, curve.run), value, step]);
      const nth = many ? panel.curves.slice(0, index).filter((other) => other.run === curve.run).length : index;
      return {
        type: "line", name: own(curve), data: points, z: curve.faint ? 1 : 2,
        showSymbol: points.length < 40, symbolSize: 5, symbol: ["circle", "rect", "triangle", "diamond"][nth % 4],
        color: colour(`--c${(many ? curve.run : index) % 8}`),
        lineStyle: {
          width: curve.faint ? 1 : 1.8, opacity: curve.faint ? 0.45 : 1,
          type: LINES[(many ? nth : Math.floor(index / 8)) % 3],
        },
        itemStyle: { opacity: curve.faint ? 0.45 : 1 },
        emphasis: { focus: "series" },
      };
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
    const names = [...new Set(panel.curves.map(own))];
    const legend = names.length > 1;
    const needed = legendRows(names, figure.chart.getWidth());
    const rows = needed > MOST_ROWS ? 1 : needed;
    const grey = many ? { color: colour("--soft") } : {};
    return {
      ...look,
      grid: { left: 8, right: 16, top: legend ? 14 + 23 * rows : 14, bottom: 26, containLabel: true },
      legend: {
        show: legend, type: needed > MOST_ROWS ? "scroll" : "plain", data: names.map((name) => ({ name, itemStyle: grey, lineStyle: grey })), top: 0, left: 0, padding: [4, 0], itemWidth: 22, itemHeight: 12,
        textStyle: { color: colour("--ink"), fontSize: 12, lineHeight: 20 }, pageTextStyle: { color: colour("--soft") },
        pageIconColor: colour("--ink"), pageIconInactiveColor: colour("--line"),
      },
      xAxis: {
        ...look.axis, type: "value", min: "dataMin", max: "dataMax", name: AXES[axis], nameLocation: "middle",
        nameGap: 26, splitLine: { show: false },
        axisLabel: { ...look.axis.axisLabel, formatter: number, showMinLabel: true, showMaxLabel: false },
      },
      yAxis: {
        ...look.axis, type: log ? "log" : "value", scale: true,
        axisLabel: { ...look.axis.axisLabel, formatter: number },
      },
      tooltip: { ...look.tooltip, trigger: "axis", formatter: (points) => told(panel, points) },
      toolbox: { show: true, itemSize: 0, feature: { dataZoom: { yAxisIndex: "none" } } },
      dataZoom: [{ type: "inside", zoomOnMouseWheel: "ctrl", moveOnMouseMove: false, preventDefaultMouseMove: false }],
      series,
    };
  }

  /** What the pointer is at: the step, and the value of each curve there. */
  function told(panel, points) {
    const seen = new Map();
    for (const point of points) if (!seen.has(point.seriesIndex)) seen.set(point.seriesIndex, point);
    const rows = [...seen.values()];
    const head = `step ${rows[0].value[2]}` + (axis === "step" ? "" : `, ${number(rows[0].value[0])} ${axis}`);
    return [head, ...rows.map((row) => `${panel.curves[row.seriesIndex].name}: ${number(row.value[1])}${panel.unit && " " + panel.unit}`)].join("\n");
  }

  function cells(panel, figure) {
    const look = frame();
    const choice = panel.choices[figure.chosen];
    const values = choice.cells.map((cell) => cell[2]);
    const least = values.reduce((a, b) => Math.min(a, b), Infinity);
    const most = values.reduce((a, b) => Math.max(a, b), -Infinity);
    // By the root of the share, else the tails of a distribution are all one colour.
    const root = panel.scale.startsWith("share");
    const shade = root ? Math.sqrt : (value) => value;
    const numeric = choice.rows.every((row) => !isNaN(row));
    return {
      ...look,
      grid: { left: 8, right: 76, top: 10, bottom: 26, containLabel: true },
      xAxis: {
        ...look.axis, type: "category", data: choice.steps.map((step) => number(at(step, 0))), name: AXES[axis],
        nameLocation: "middle", nameGap: 26, splitLine: { show: false },
      },
      yAxis: {
        ...look.axis, type: "category", data: choice.rows, splitLine: { show: false },
        axisLabel: { ...look.axis.axisLabel, width: numeric ? 70 : 150, overflow: "truncate" },
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

  function draw(figure) {
    const panel = data.panels[figure.key];
    figure.chart.setOption(panel.kind === "curves" ? curves(panel, figure) : cells(panel, figure), true);
    if (panel.kind === "curves") {
      figure.chart.dispatchAction({ type: "takeGlobalCursor", key: "dataZoomSelect", dataZoomSelectActive: true });
    }
  }

  function tool(kind, figure, build) {
    const element = document.createElement(kind);
    build(element);
    figure.element.querySelector(".tools").append(element);
  }

  function begin(element) {
    const panel = data.panels[element.dataset.panel];
    const space = element.querySelector(".chart");
    const figure = {
      element, key: element.dataset.panel, log: Boolean(panel.log), chosen: 0,
      marked: element.dataset.from === undefined ? null : [Number(element.dataset.from), Number(element.dataset.to)],
    };
    if (panel.kind === "cells") {
      const rows = Math.max(...panel.choices.map((choice) => choice.rows.length));
      if (rows > 60) space.style.height = `${Math.min(900, 60 + 9 * rows)}px`;
    }
    figure.chart = echarts.init(space, null, { renderer: "svg" });
    if (panel.kind === "curves") {
      tool("button", figure, (button) => {
        const say = () => { button.textContent = figure.log ? "log scale" : "linear scale"; };
        button.type = "button";
        button.title = "Switch between a linear and a logarithmic scale";
        button.onclick = () => { figure.log = !figure.log; say(); draw(figure); };
        say();
      });
      space.addEventListener("dblclick", () => draw(figure));
    } else if (panel.choices.length > 1) {
      tool("select", figure, (select) => {
        select.setAttribute("aria-label", `${panel.title}: which variable`);
        panel.choices.forEach((choice, index) => select.append(new Option(choice.name, index)));
        select.onchange = () => {
          figure.chosen = Number(select.value);
          const text = panel.choices[figure.chosen].text;
          element.querySelector(".said").textContent = text;
          space.setAttribute("aria-label", `${panel.title}. ${text}`);
          draw(figure);
        };
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

  repaint();
  const moves = (name) => data.clocks.some((clock) => clock[name].some((value) => value !== clock[name][0]));
  document.querySelectorAll("input[name=axis]").forEach((input) => {
    input.disabled = !moves(input.value);
    input.onchange = () => { axis = input.value; drawn.forEach(draw); };
  });
  document.querySelectorAll("figure[data-panel]").forEach(begin);
  wantsDark.addEventListener("change", repaint);
  addEventListener("resize", () => drawn.forEach((figure) => figure.chart.resize()));
  addEventListener("beforeprint", () => { printing = true; repaint(); });
  addEventListener("afterprint", () => { printing = false; repaint(); });
  document.documentElement.dataset.drawn = String(drawn.length);
})();
