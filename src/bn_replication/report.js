// Interactive charts: the data lies beside each figure, Vega-Lite within the page; controls are plain HTML, for keyboards and readers.
"use strict";

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

// Nine bands or more would hide each other.
const shownArms = (state) => state.shown.filter(Boolean).length;

const steps = (log) => ({ field: "step", type: "quantitative", title: "training steps",
  axis: { labelExpr: "datum.value >= 1000 ? format(datum.value / 1000, '~g') + 'K' : datum.label", tickCount: 5, labelOverlap: true,
    ...(log ? { values: [0, 1, 10, 100, 1e3, 1e4, 1e5, 1e6] } : {}) }, scale: log ? { type: "symlog", constant: 1 } : { nice: false } });

function curves(data, state) {
  // Late curves lie close; beside the climb of the first half they are one line.
  const from = state.late ? Math.max(...data.series.flatMap((one) => one.step)) / 2 : 0;
  const values = data.series.flatMap((one) => !state.shown[one.arm] ? [] : one.step.map((step, i) =>
    ({ step, value: one[state.column][i], seed: one.seed, arm: data.arms[one.arm].label, run: `${one.arm}/${one.seed}` })))
    .filter((row) => row.value !== null && row.step >= from && !(state.logY && row.value <= 0));
  const { arms, ...spec } = base(state, data);
  const color = { field: "arm", type: "nominal", scale: { domain: arms.domain, range: arms.range }, legend: null };
  const strokeDash = { field: "arm", type: "nominal", scale: { domain: arms.domain, range: arms.dashes }, legend: null };
  const y = { field: "value", type: "quantitative", title: data.names[state.column],
    scale: state.logY ? { type: "log" } : { zero: false, nice: true } };
  const x = { ...steps(state.logX) };
  if (state.late) x.scale = { ...x.scale, zero: false };
  const seeds = { mark: { type: "line", strokeWidth: 1.1, opacity: 0.75, clip: true }, encoding: { x, y, color, strokeDash, detail: { field: "run" } } };
  const band = { mark: { type: "area", opacity: 0.15 }, encoding: { x, color,
    y: { ...y, aggregate: "min", stack: null }, y2: { field: "value", aggregate: "max" } } };
  const middle = { mark: { type: "line", strokeWidth: 2 }, encoding: { x, color, strokeDash, y: { ...y, aggregate: "median" } } };
  const points = {
    params: [{ name: "near", select: { type: "point", on: "pointermove", nearest: true, clear: "pointerout" } }],
    mark: { type: "point", filled: true, size: 55 },
    encoding: { x, y, color, opacity: { condition: { param: "near", empty: false, value: 1 }, value: 0 },
      tooltip: [{ field: "arm", title: "arm" }, { field: "seed", title: "seed" }, { field: "step", title: "step", format: "," },
        { field: "value", title: data.names[state.column], format: ".4~g" }] },
  };
  return { ...spec, height: 300, data: { values }, layer: state.every ? [seeds, points] : shownArms(state) > 8 ? [middle, points] : [band, middle, points] };
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
  // An arm that goes ten times as far as the middle one, as some that diverge, has no say in the axis and leaves it.
  const reach = arms.domain.map((arm) => Math.max(0, ...values.filter((row) => row.arm === arm).flatMap((row) => [Math.abs(row.low), Math.abs(row.high)])));
  const most = 10 * [...reach].sort((a, b) => a - b)[reach.length >> 1];
  const near = values.filter((row) => reach[arms.domain.indexOf(row.arm)] <= most);
  const scale = near.length < values.length ? { domain: [Math.min(...near.map((row) => row.low)), Math.max(...near.map((row) => row.high))], nice: true } : {};
  const y = (field) => ({ field, type: "quantitative", title: "input", scale });
  const number = (field, title) => ({ field, title, format: ".3~g" });
  return { ...spec, data: { values }, columns, spacing: 14,
    facet: { field: "arm", type: "nominal", title: null, sort: arms.domain, header: { labelFontSize: 11, labelAnchor: "start" } },
    spec: { width: Math.floor((width - 60) / columns) - 32, height: 130, layer: [
      { mark: { type: "area", opacity: 0.25, clip: true }, encoding: { x, color, y: { ...y("low"), stack: null }, y2: { field: "high" } } },
      { mark: { type: "line", strokeWidth: 2, clip: true }, encoding: { x, color, y: y("middle") } },
      { mark: { type: "point", clip: true, size: 200, filled: true, opacity: 0 }, encoding: { x, y: y("middle"), color,
        tooltip: [{ field: "arm", title: "arm" }, { field: "step", title: "step", format: "," },
          number("low", "15th percentile"), number("middle", "median"), number("high", "85th percentile")] } },
    ] } };
}

// The same as a picture of every bin: a column is a probe, its darkest cell the fullest bin.
function histograms(data, state, width) {
  const { low, high } = data.edges;
  const values = data.series.flatMap((one) => one.layer !== Number(state.layer) || !state.shown[one.arm] || !one.bins ? [] : one.step.flatMap((step, i) =>
    [...(one.bins[i] || "")].map((letter, bin, all) => ({ step, share: (letter.charCodeAt(0) - 48) / 15, arm: data.arms[one.arm].label,
      from: low + (high - low) * bin / all.length, to: low + (high - low) * (bin + 1) / all.length }))));
  const { arms, ...spec } = base(state, data);
  delete spec.width; delete spec.autosize;
  const columns = Math.max(1, Math.min(arms.domain.length, Math.floor(width / 165)));
  return { ...spec, data: { values }, columns, spacing: 14,
    facet: { field: "arm", type: "nominal", title: null, sort: arms.domain, header: { labelFontSize: 11, labelAnchor: "start" } },
    spec: { width: Math.floor((width - 60) / columns) - 32, height: 130, mark: { type: "rect" }, encoding: {
      x: { field: "step", type: "ordinal", title: null, axis: { labelOverlap: true, labelAngle: 0, ticks: false,
        labelExpr: "datum.value >= 1000 ? format(datum.value / 1000, '.2~r') + 'K' : datum.label" } },
      y: { field: "from", type: "quantitative", title: "input", scale: { nice: false, zero: false } }, y2: { field: "to" },
      color: { field: "share", type: "quantitative", scale: { range: ["#ffffff", "#111111"], domain: [0, 1] }, legend: null },
      tooltip: [{ field: "arm" }, { field: "step", format: "," }, { field: "from", format: ".3~g" }, { field: "to", format: ".3~g" },
        { field: "share", title: "of the fullest bin", format: ".0%" }],
    } } };
}

// How much of the loss's gradient reaches the layer's weights, over decades; what is exactly zero has no place there.
function gradients(data, state) {
  const values = data.series.flatMap((one) => one.layer !== Number(state.layer) || !state.shown[one.arm] || !one.gradient ? [] : one.step.map((step, i) =>
    ({ step, value: one.gradient[i], arm: data.arms[one.arm].label }))).filter((row) => row.value > 0);
  const { arms, ...spec } = base(state, data);
  const color = { field: "arm", type: "nominal", scale: { domain: arms.domain, range: arms.range }, legend: null };
  const strokeDash = { field: "arm", type: "nominal", scale: { domain: arms.domain, range: arms.dashes }, legend: null };
  const x = steps(state.logX), y = { field: "value", type: "quantitative", title: "rms of d loss / d W", scale: { type: "log" }, axis: { format: ".0e" } };
  return { ...spec, height: 300, data: { values }, layer: [
    { mark: { type: "line", strokeWidth: 1.5 }, encoding: { x, y, color, strokeDash } },
    { mark: { type: "point", size: 200, filled: true, opacity: 0 }, encoding: { x, y, color,
      tooltip: [{ field: "arm" }, { field: "step", format: "," }, { field: "value", title: "rms of d loss / d W", format: ".2e" }] } },
  ] };
}

// The views of a layer: name, who draws it, what it shows, and what a record must have for it.
const VIEWS = {
  bands: { name: "percentile bands", draw: layers,
    caption: "Line: median; band: the 15th to the 85th percentile; one panel an arm, on shared axes; an arm that goes ten times as far as most leaves them." },
  bins: { name: "histograms", draw: histograms, needs: "bins",
    caption: "Each column is a probe, from before training to its end; the darker a cell, the more inputs fall there. The outermost cells hold what lies beyond." },
  gradients: { name: "gradients of its weights", draw: gradients, needs: "gradient",
    caption: "Root mean square of d loss / d W over the weights W in front of this nonlinearity, on the training batch just before each probe." },
};

async function unpack(script) {
  const bytes = Uint8Array.from(atob(script.textContent), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

// A chart's data: its series stand key by key, and become rows.
async function chart(script) {
  const data = JSON.parse(await unpack(script));
  const keys = Object.entries(data.series);
  data.series = keys[0][1].map((_, row) => Object.fromEntries(keys.filter(([, column]) => column[row] !== null).map(([key, column]) => [key, column[row]])));
  return data;
}

// Vega-Lite, unpacked for the first chart and not before.
let vega;
const library = () => (vega ??= unpack(document.getElementById("vega")).then((text) => { document.head.append(element("script", { text })); }));

async function embed(view, spec) {
  await library();
  return window.vegaEmbed(view, spec, { actions: false, renderer: "svg", ast: false });
}

function armBoxes(data, state, draw) {
  return data.arms.map((arm, i) => {
    const swatch = element("span", { className: "swatch" });
    swatch.style.borderTopColor = arm.colour;
    swatch.style.borderTopStyle = arm.dash.length ? "dashed" : "solid";
    return checkbox(arm.label, state.shown[i], (on) => { state.shown[i] = on; draw(); }, swatch);
  });
}

async function startCurves(figure) {
  const data = await chart(document.getElementById(figure.dataset.chart));
  const [controls, view] = [figure.querySelector(".controls"), figure.querySelector(".view")];
  const state = { shown: data.arms.map(() => true), column: data.columns[0], every: false, late: false, logX: false, logY: false };
  const draw = () => embed(view, curves(data, state));
  const set = (key) => (value) => { state[key] = value; draw(); };
  controls.append(...armBoxes(data, state, draw), element("div", { className: "settings" },
    choice("Show", data.columns.map((c) => [c, data.names[c]]), set("column")), checkbox("every seed", false, set("every")), checkbox("second half only", false, set("late")),
    checkbox("log y", false, set("logY")), checkbox("log steps", false, set("logX"))));
  return draw();
}

// One chart for all studies: which one, which layer, and whether as bands or bin by bin.
async function startDistributions(figure) {
  const [controls, place, caption] = [".controls", ".view", "figcaption"].map((name) => figure.querySelector(name));
  const scripts = [...document.querySelectorAll("script[data-name]")];
  const state = { layer: "0", logX: true, view: "bands" };
  let data;
  const draw = () => {
    const view = VIEWS[state.view];
    log.querySelector("input").disabled = state.view === "bins"; // its columns stand for probes, not steps
    caption.textContent = view.caption;
    const layer = data.layers[state.layer], what = state.view === "gradients" ? `Gradient of the weights in front of layer ${layer}` : `Input of layer ${layer}`;
    place.setAttribute("aria-label", `${what} over training, ${state.view === "gradients" ? "a line" : "one panel"} an arm`);
    return embed(place, view.draw(data, state, place.clientWidth));
  };
  const set = (key) => (value) => { state[key] = value; draw(); };
  const open = async (id) => {
    data = await chart(document.getElementById(id));
    Object.assign(state, { shown: data.arms.map(() => true), layer: String(data.layers.length - 1) });
    const layer = choice("Layer", data.layers.map((name, i) => [String(i), `${i + 1}. ${name}`]), set("layer"));
    layer.querySelector("select").value = state.layer;
    // Only what this record can show is offered.
    const kept = Object.entries(VIEWS).filter(([, each]) => !each.needs || data.series.some((one) => one[each.needs]));
    if (!kept.some(([key]) => key === state.view)) state.view = "bands";
    const list = how.querySelector("select");
    list.replaceChildren(...kept.map(([value, each]) => element("option", { value, textContent: each.name })));
    list.value = state.view;
    list.disabled = kept.length < 2;
    boxes.replaceChildren(...armBoxes(data, state, draw));
    pick.replaceChildren(layer);
    await draw();
  };
  const [boxes, pick] = [element("div", { className: "settings arms" }), element("span")];
  const study = choice("Study", scripts.map((script) => [script.id, script.dataset.name]), open);
  const how = choice("View", [], set("view")), log = checkbox("log steps", true, set("logX"));
  controls.append(element("div", { className: "settings" }, study, pick, how, log), boxes);
  document.querySelectorAll("[data-study]").forEach((link) => link.addEventListener("click", () => {
    study.querySelector("select").value = link.dataset.study;
    open(link.dataset.study);
  }));
  await open(scripts[0].id);
}

// A chart is drawn when it comes near the view, so that the page opens at once; all of them before printing.
const starters = [["[data-chart]", startCurves], ["[data-distributions]", startDistributions]];
const waiting = new Map(starters.flatMap(([name, start]) => [...document.querySelectorAll(name)].map((figure) => [figure, start])));
const begin = (figure) => { const start = waiting.get(figure); if (waiting.delete(figure)) start(figure); };
const watch = new IntersectionObserver((entries) => entries.forEach((entry) => entry.isIntersecting && begin(entry.target)), { rootMargin: "600px" });
[...waiting.keys()].forEach((figure) => watch.observe(figure));
document.querySelectorAll("[data-study]").forEach((link) => link.addEventListener("click", () =>
  document.querySelectorAll("[data-distributions]").forEach(begin), { capture: true }));
window.addEventListener("beforeprint", () => [...waiting.keys()].forEach(begin));
