// Interactive charts: the data lies beside each figure, Vega-Lite within the page; controls are plain HTML, for keyboards and readers.
"use strict";

const words = (name) => name.replaceAll("_", " ");

function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

function checkbox(text, checked, change, before = "") {
  const input = element("input", { type: "checkbox", checked, onchange: () => change(input.checked) });
  return element("label", {}, input, before, text);
}

function choice(text, options, change) {
  const list = element("select", { onchange: () => change(list.value) },
    ...options.map(([value, label]) => element("option", { value, textContent: label })));
  return element("label", {}, text, list);
}

function base(state, data) {
  const shown = data.arms.filter((_, i) => state.shown[i]);
  return {
    width: "container", autosize: { type: "fit-x", contains: "padding" }, background: null,
    config: { font: "system-ui, sans-serif", axis: { labelFontSize: 11, titleFontSize: 11, titleFontWeight: 400, gridColor: "#e6e6e6" },
      view: { stroke: null }, lineBreak: "\n" },
    arms: { domain: shown.map((arm) => arm.label), range: shown.map((arm) => arm.colour), dashes: shown.map((arm) => arm.dash.length ? arm.dash : [1, 0]) },
  };
}

const steps = (log) => ({ field: "step", type: "quantitative", title: "training steps",
  axis: { labelExpr: "datum.value >= 1000 ? format(datum.value / 1000, '~g') + 'K' : datum.label", tickCount: 5, labelOverlap: true,
    ...(log ? { values: [0, 1, 10, 100, 1e3, 1e4, 1e5, 1e6] } : {}) }, scale: log ? { type: "symlog", constant: 1 } : { nice: false } });

function curves(data, state) {
  const values = data.series.flatMap((one) => !state.shown[one.arm] ? [] : one.step.map((step, i) =>
    ({ step, value: one[state.column][i], seed: one.seed, arm: data.arms[one.arm].label, run: `${one.arm}/${one.seed}` })))
    .filter((row) => row.value !== null && !(state.logY && row.value <= 0));
  const { arms, ...spec } = base(state, data);
  const color = { field: "arm", type: "nominal", scale: { domain: arms.domain, range: arms.range }, legend: null };
  const strokeDash = { field: "arm", type: "nominal", scale: { domain: arms.domain, range: arms.dashes }, legend: null };
  const y = { field: "value", type: "quantitative", title: words(state.column),
    scale: state.logY ? { type: "log" } : { zero: false, nice: true } };
  const x = steps(state.logX);
  const seeds = { mark: { type: "line", strokeWidth: 1.1, opacity: 0.75, clip: true }, encoding: { x, y, color, strokeDash, detail: { field: "run" } } };
  const band = { mark: { type: "area", opacity: 0.15 }, encoding: { x, color,
    y: { ...y, aggregate: "min", stack: null }, y2: { field: "value", aggregate: "max" } } };
  const middle = { mark: { type: "line", strokeWidth: 2 }, encoding: { x, color, strokeDash, y: { ...y, aggregate: "median" } } };
  const points = {
    params: [{ name: "near", select: { type: "point", on: "pointermove", nearest: true, clear: "pointerout" } }],
    mark: { type: "point", filled: true, size: 55 },
    encoding: { x, y, color, opacity: { condition: { param: "near", empty: false, value: 1 }, value: 0 },
      tooltip: [{ field: "arm", title: "arm" }, { field: "seed", title: "seed" }, { field: "step", title: "step", format: "," },
        { field: "value", title: words(state.column), format: ".4~g" }] },
  };
  return { ...spec, height: 300, data: { values }, layer: state.every ? [seeds, points] : [band, middle, points] };
}

// One small chart an arm, on shared axes: seven bands in one would hide each other.
function layers(data, state, width) {
  const values = data.series.flatMap((one) => one.layer !== Number(state.layer) || !state.shown[one.arm] ? [] : one.step.map((step, i) =>
    ({ step, low: one.p15[i], middle: one.p50[i], high: one.p85[i], arm: data.arms[one.arm].label })))
    .filter((row) => row.middle !== null);
  const { arms, ...spec } = base(state, data);
  delete spec.width; delete spec.autosize;
  const columns = Math.max(1, Math.min(arms.domain.length, Math.floor(width / 165)));
  const color = { field: "arm", type: "nominal", scale: { domain: arms.domain, range: arms.range }, legend: null };
  const x = { ...steps(state.logX), title: null };
  const y = (field) => ({ field, type: "quantitative", title: "input" });
  const number = (field, title) => ({ field, title, format: ".3~g" });
  return { ...spec, data: { values }, columns, spacing: 14,
    facet: { field: "arm", type: "nominal", title: null, sort: arms.domain, header: { labelFontSize: 11, labelAnchor: "start" } },
    spec: { width: Math.floor((width - 60) / columns) - 32, height: 130, layer: [
      { mark: { type: "area", opacity: 0.25 }, encoding: { x, color, y: { ...y("low"), stack: null }, y2: { field: "high" } } },
      { mark: { type: "line", strokeWidth: 2 }, encoding: { x, color, y: y("middle") } },
      { mark: { type: "point", size: 200, filled: true, opacity: 0 }, encoding: { x, y: y("middle"), color,
        tooltip: [{ field: "arm", title: "arm" }, { field: "step", title: "step", format: "," },
          number("low", "15th percentile"), number("middle", "median"), number("high", "85th percentile")] } },
    ] } };
}

function start(figure) {
  const data = JSON.parse(document.getElementById(figure.dataset.chart).textContent);
  const [controls, view] = [figure.querySelector(".controls"), figure.querySelector(".view")];
  const isCurves = data.kind === "curves";
  const state = { shown: data.arms.map(() => true), column: isCurves ? data.columns[0] : "", every: false,
    logX: !isCurves, logY: false, layer: "0" };
  const draw = () => window.vegaEmbed(view, (isCurves ? curves : layers)(data, state, view.clientWidth), { actions: false, renderer: "svg" });
  const set = (key) => (value) => { state[key] = value; draw(); };
  data.arms.forEach((arm, i) => {
    const swatch = element("span", { className: "swatch" });
    swatch.style.borderTopColor = arm.colour;
    swatch.style.borderTopStyle = arm.dash.length ? "dashed" : "solid";
    controls.append(checkbox(arm.label, true, (on) => { state.shown[i] = on; draw(); }, swatch));
  });
  const settings = element("div", { className: "settings" });
  if (isCurves) {
    settings.append(choice("Show", data.columns.map((c) => [c, words(c)]), set("column")), checkbox("every seed", false, set("every")),
      checkbox("log y", false, set("logY")));
  } else {
    settings.append(choice("Layer", data.layers.map((layer, i) => [i, `${i + 1}. ${layer}`]), set("layer")));
  }
  settings.append(checkbox("log steps", state.logX, set("logX")));
  controls.append(settings);
  draw();
}

// A chart is drawn when it comes near the view, so that the page opens at once; all of them before printing.
const waiting = new Set(document.querySelectorAll("[data-chart]"));
const begin = (figure) => { if (waiting.delete(figure)) start(figure); };
const watch = new IntersectionObserver((entries) => entries.forEach((entry) => entry.isIntersecting && begin(entry.target)), { rootMargin: "600px" });
waiting.forEach((figure) => watch.observe(figure));
window.addEventListener("beforeprint", () => [...waiting].forEach(begin));
