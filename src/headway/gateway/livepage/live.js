// The live page: asks for /headway/now once a second, keeps the points of the last quarter of an hour, draws them.
"use strict";

const KINDS = { ttft: "TTFT", tpot: "TPOT", e2e: "E2E" };
const ENDS = ["met", "missed", "refused", "failed"];
const $ = (id) => document.getElementById(id);
const state = { now: null, points: [], class: "", kind: "ttft", heard: 0, cursor: null };

// --- words ---

const number = (value, digits = 0) => value.toLocaleString("en", { maximumFractionDigits: digits });
const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(share > 0.9995 || share < 0.0005 ? 0 : 1)} %`);
const size = (value) => (value >= 100 ? number(value) : number(Number(value.toPrecision(3)), 3));
const time = (s) => (s === null || s === undefined ? "–" : s < 0.9995 ? `${size(1000 * s)} ms` : `${size(s)} s`);
const ago = (s) => (s < 1.5 ? "now" : s < 90 ? `${Math.round(s)} s ago` : s < 5400 ? `${Math.round(s / 60)} min ago` : `${number(s / 3600, 1)} h ago`);

// --- elements: text only ever becomes text nodes ---

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

function drawn(tag, attributes = {}, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text) made.textContent = text;
  return made;
}

function bar(share, said, { target = null, short = false } = {}) {
  const fill = element("i");
  fill.style.width = `${100 * Math.min(Math.max(share || 0, 0), 1)}%`;
  const made = element("div", { class: short ? "bar short" : "bar", role: "meter", "aria-valuenow": (share || 0).toFixed(3), "aria-valuemin": 0, "aria-valuemax": 1, "aria-label": said }, fill);
  if (target !== null) {
    const mark = element("b");
    mark.style.left = `calc(${100 * target}% - 1px)`;
    made.append(mark);
  }
  return made;
}

function fill(id, rows, nothing) {
  const body = $(id).tBodies[0];
  const names = [...$(id).tHead.rows[0].cells].map((cell) => cell.textContent);
  for (const row of rows) [...row.cells].forEach((cell, i) => cell.setAttribute("data-label", names[i]));
  body.replaceChildren(...(rows.length ? rows : [element("tr", {}, element("td", { class: "empty", colspan: names.length }, nothing))]));
}

// --- sections ---

function header(now) {
  const judged = now.classes.filter((c) => c.attainment !== null);
  const short = judged.filter((c) => c.attainment < c.target);
  const out = now.replicas.filter((r) => !r.healthy).length;
  let verdict = "No request has ended in the last minute";
  if (judged.length) verdict = short.length ? `Below target: ${short.map((c) => c.name).join(", ")}` : "Every class meets its target";
  if (out) verdict += `; ${out} of ${now.replicas.length} replicas out`;
  if ($("verdict").textContent !== verdict) $("verdict").textContent = verdict;
  $("verdict").className = short.length || out ? "bad" : judged.length ? "good" : "";
  const policies = Object.entries(now.policies).map(([kind, name]) => `${kind} ${name}`).join(", ");
  $("about").textContent = `${now.models.join(", ")} on ${now.replicas.length} ${now.replicas.length === 1 ? "replica" : "replicas"}; policies: ${policies}`;
  const alarms = now.faults.map((fault) => `The books disagree with themselves: ${fault}`);
  const wrong = Object.values(now.policy_errors).reduce((sum, count) => sum + count, 0);
  if (wrong) alarms.push(`A policy failed ${number(wrong)} times and the fallback decided; last: ${now.policy_error}`);
  const said = alarms.join("\n");
  if ($("alarms").dataset.said !== said) {
    $("alarms").dataset.said = said;
    $("alarms").replaceChildren(...alarms.map((text) => element("p", {}, text)));
  }
}

function cards(now) {
  const sum = (name) => now.classes.reduce((total, c) => total + (c.lately[name] || 0), 0);
  const places = now.replicas.reduce((total, r) => total + (r.healthy ? r.window : 0), 0);
  const goodput = now.classes.reduce((total, c) => total + c.goodput_req_s, 0);
  const { watts, joules_per_output_token: joules, usd_per_hour: hourly, usd_per_million_output_tokens: million } = now.estimates;
  const shown = [
    ["live", "Under way", number(now.live - now.held), `of ${number(places)} places`],
    ["held", "Held in the queue", number(now.held), `at most ${number(now.held_max)}`],
    ["goodput", "Goodput", `${number(goodput, goodput < 10 ? 1 : 0)}/s`, `met every limit, of ${number(sum("over"))} in the last minute`],
    ["refused", "Refused", number(sum("refused")), `and ${number(sum("failed"))} failed or left, last minute`],
    ["watts", "Power, estimated", watts === null ? "–" : `${number(watts)} W`, joules === null ? "no cost model or no tokens yet" : `${size(joules)} J per output token`],
    ["cost", "Cost, estimated", hourly === null ? "–" : `$${hourly.toFixed(2)}/h`, million === null ? "no price or no tokens yet" : `$${size(million)} per million output tokens`],
  ];
  $("cards").replaceChildren(...shown.map(([id, label, value, sub]) => element("div", { class: "card" }, element("div", { class: "label" }, label),
    element("div", { class: "value", id: `card-${id}` }, value), element("div", { class: "sub" }, sub))));
}

function classes(now) {
  const last = state.points.length ? state.points[state.points.length - 1].classes : {};
  $("classes").replaceChildren(...now.classes.map((c) => {
    const meets = c.attainment === null ? null : c.attainment >= c.target;
    const word = meets === null ? "no traffic" : meets ? `✓ meets ${percent(c.target)}` : `✗ below ${percent(c.target)}`;
    const facts = Object.keys(KINDS).filter((kind) => c.limits_s[kind] !== null || kind === "ttft").map((kind) => {
      const p95 = (last[c.name] || {})[`${kind}_p95_s`];
      const limit = c.limits_s[kind];
      const over = limit !== null && p95 > limit;
      return [`${KINDS[kind]} p95`, element("span", { class: over ? "bad" : "" }, `${time(p95)}${over ? " ✗" : ""}`), limit === null ? "no limit" : `limit ${time(limit)}`];
    });
    facts.push(["Ended", number(c.lately.over || 0), `${number(c.lately.refused || 0)} refused`], ["Ever", percent(c.attainment_ever), `of ${number(c.over_ever)}`]);
    return element("div", { class: "class" },
      element("h3", {}, c.name, element("span", { class: meets === null ? "" : meets ? "good" : "bad" }, word)),
      element("div", { class: "value" }, percent(c.attainment)),
      bar(c.attainment, `attainment of ${c.name}`, { target: c.target, short: meets === false }),
      element("dl", {}, ...facts.map(([name, value, sub]) => element("div", {}, element("dt", {}, name), element("dd", {}, value, element("span", { class: "sub" }, sub))))));
  }));
}

function spark(index) {
  const values = state.points.slice(-150).map((point) => (point.replicas[index] || [0])[0]);
  const most = Math.max(...values, 1);
  const path = values.map((value, i) => `${i ? "L" : "M"}${(120 * i / Math.max(values.length - 1, 1)).toFixed(1)} ${(22 - 20 * value / most).toFixed(1)}`).join("");
  const svg = drawn("svg", { viewBox: "0 0 120 24", role: "img", "aria-label": `requests, at most ${most}` });
  svg.append(drawn("path", { d: path }));
  return svg;
}

function replicas(now) {
  fill("replicas", now.replicas.map((r, index) => {
    const said = r.engine_running === null ? "–" : `${r.engine_running} + ${r.engine_waiting || 0}`;
    const kv = r.kv_share === null ? ["–"] : [`${percent(r.kv_share)}${r.kv_said ? "" : " predicted"}`, bar(r.kv_share, "KV in use", { short: r.kv_share > 0.95 })];
    const drift = r.drift === null ? "–" : r.drift > 0 ? `+${r.drift}` : r.drift < 0 ? `−${-r.drift}` : "0";
    return element("tr", {}, element("td", { class: "nowrap" }, r.address), element("td", { class: "nowrap" }, r.model || "not described", ...(r.role === "mixed" ? [] : [element("span", { class: "sub" }, r.role)])),
      element("td", { class: `nowrap ${r.healthy ? "good" : "bad"}` }, r.healthy ? "● serving" : "✗ out"),
      element("td", { class: "meter" }, `${r.in_flight} of ${r.window}${r.others ? `, ${r.others} not ours` : ""}`, bar((r.in_flight + r.others) / r.window, "places in use")),
      element("td", { class: "spark" }, spark(index)), element("td", { class: "number" }, r.computing), element("td", { class: "number" }, said),
      element("td", { class: "meter" }, ...kv), element("td", { class: "number" }, drift),
      element("td", { class: "number" }, r.watts === null ? "–" : number(r.watts)));
  }), "No replica");
}

function advice(now) {
  $("advice").hidden = !now.advice.length;
  $("advice").replaceChildren(...now.advice.map((a) => {
    const change = a.replicas - a.there;
    const said = change ? `${Math.abs(change)} ${change > 0 ? "more" : "fewer"}` : "as many as there are";
    const whose = now.advice.length > 1 && a.model ? ` of ${a.model}${a.role === "mixed" ? "" : `, ${a.role}`}` : "";
    return element("span", { class: change ? "differs" : "" }, `Scale advice: ${a.replicas} replica${a.replicas === 1 ? "" : "s"}${whose}, ${said}`,
      element("span", { class: "sub" }, ` ${a.reason}; ${ago(now.now_s - a.at_s)}`));
  }));
}

function refusals(now) {
  fill("refusals", now.refusals.map((r) => element("tr", {}, element("td", { class: "nowrap" }, ago(now.now_s - r.at_s)), element("td", {}, r.slo_class),
    element("td", {}, r.tenant), element("td", { class: "why" }, `${r.status} ${r.code}`, element("span", { class: "sub" }, r.reason)),
    element("td", { class: "number" }, number(r.times)))), "None since the decision process began");
}

function bars(id, rows, nothing) {
  const most = Math.max(...rows.map(([, count]) => count), 1);
  const shown = rows.map(([text, count, said]) => element("div", {}, element("span", {}, text), element("span", {}, said || number(count)), bar(count / most, text)));
  $(id).replaceChildren(...(shown.length ? shown : [element("p", { class: "empty" }, nothing)]));
}

function shadow(now) {
  $("shadow").hidden = !now.shadow;
  if (!now.shadow) return;
  const kinds = Object.entries(now.shadow).filter(([, said]) => said && said.policy);
  bars("shadow-said", kinds.map(([kind, said]) => [`${kind}: ${said.policy} agrees${said.off ? `; off: ${said.off}` : ""}`, said.agreement,
    `${percent(said.agreement)} of ${number(said.agree + said.differ)}${said.errors ? `, ${number(said.errors)} errors` : ""}`]), "No decision yet");
  const differences = (now.shadow.recent_differences || []).slice(-12).reverse();
  fill("differences", differences.map((d) => element("tr", {}, element("td", {}, d.decision), element("td", { class: "nowrap" }, d.live),
    element("td", { class: "nowrap" }, d.shadow), element("td", { class: "why" }, d.reason))), "No difference yet");
}

// --- charts ---

function choose(id, name, options) {
  const field = $(id);
  if (field.dataset.options === options.join()) return;
  field.dataset.options = options.join();
  field.replaceChildren(field.querySelector("legend"), ...options.map(([value, text]) => {
    const input = element("input", { type: "radio", name, value });
    input.checked = state[name] === value;
    input.addEventListener("change", () => { state[name] = value; charts(); });
    return element("label", {}, input, element("span", {}, text));
  }));
}

function ticks(most, count) {
  const raw = most / count;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * [1, 2, 2.5, 5, 10].find((each) => each * unit >= raw);
  return Array.from({ length: Math.floor(most / step + 1e-9) + 1 }, (_, i) => i * step);
}

function frame(id, height, most, label) {
  const width = Math.max($(id).clientWidth, 280);
  const box = { left: 58, right: width - 8, top: 8, bottom: height - 22, width, height };
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, height });
  const end = state.now.now_s;
  const start = Math.min(end - 60, Math.max(end - 900, state.points.length ? state.points[0].at_s : end));
  box.x = (at) => box.left + (box.right - box.left) * (at - start) / (end - start);
  box.y = (value) => box.bottom - (box.bottom - box.top) * value / most;
  for (const value of ticks(most, height > 150 ? 5 : 2)) {
    svg.append(drawn("line", { class: "grid", x1: box.left, x2: box.right, y1: box.y(value), y2: box.y(value) }),
      drawn("text", { x: box.left - 8, y: box.y(value) + 4, "text-anchor": "end" }, label(value)));
  }
  const span = end - start;
  const every = [15, 30, 60, 120, 300].find((step) => span / step <= (width < 500 ? 4 : 8)) || 300;
  for (let back = 0; back <= span; back += every) {
    const text = back === 0 ? "now" : back % 60 ? `−${back} s` : `−${back / 60} min`;
    svg.append(drawn("text", { x: box.x(end - back), y: height - 4, "text-anchor": back === 0 ? "end" : "middle" }, text));
  }
  return [svg, box];
}

function line(points, name, box) {
  let path = "";
  let broken = true;
  for (const point of points) {
    const value = (point.classes[state.class] || {})[name];
    if (value === null || value === undefined) { broken = true; continue; }
    path += `${broken ? "M" : "L"}${box.x(point.at_s).toFixed(1)} ${box.y(value).toFixed(1)}`;
    broken = false;
  }
  return path;
}

function latency(now) {
  const limit = now.classes.find((c) => c.name === state.class).limits_s[state.kind];
  const [high, middle] = [`${state.kind}_p95_s`, `${state.kind}_p50_s`];
  const most = Math.max(...state.points.map((point) => (point.classes[state.class] || {})[high] || 0), 0);
  const top = Math.max(1.12 * most, 1.25 * (limit || 0), 1e-3);
  const [svg, box] = frame("latency", 240, top, (value) => (value ? time(value) : "0"));
  svg.append(drawn("path", { class: "p50", d: line(state.points, middle, box) }), drawn("path", { class: "p95", d: line(state.points, high, box) }));
  if (limit !== null) {
    svg.append(drawn("line", { class: "limit", x1: box.left, x2: box.right, y1: box.y(limit), y2: box.y(limit) }),
      drawn("text", { class: "limit-text", x: box.left + 6, y: box.y(limit) - 5 }, `limit ${time(limit)}`));
  }
  if (state.cursor !== null && state.points.length) {
    state.cursor = Math.min(Math.max(state.cursor, 0), state.points.length - 1);
    const point = state.points[state.cursor];
    const kept = point.classes[state.class] || {};
    svg.append(drawn("line", { class: "cursor", x1: box.x(point.at_s), x2: box.x(point.at_s), y1: box.top, y2: box.bottom }));
    $("reading").textContent = `${ago(now.now_s - point.at_s)}: ${KINDS[state.kind]} p95 ${time(kept[high])}, p50 ${time(kept[middle])}; ${kept.over || 0} over, ${kept.met || 0} met, ${kept.refused || 0} refused; ${point.held} held`;
  } else {
    $("reading").textContent = "";
  }
  state.box = box;
  $("latency").replaceChildren(svg);
  $("latency-caption").replaceChildren(element("span", {}, `${KINDS[state.kind]} of ${state.class}, over the last ${number(now.spread_s)} s at each point`), element("span", { class: "key p95" }, "95th percentile"),
    element("span", { class: "key p50" }, "median"), ...(limit === null ? [] : [element("span", { class: "key limit" }, "limit")]));
}

function outcomes(now) {
  const per = Math.max(1, Math.ceil(5 * 450 / Math.max($("outcomes").clientWidth - 66, 200)));
  const bins = new Map();
  for (const point of state.points) {
    const place = Math.floor(point.serial / per);
    const bin = bins.get(place) || { from: point.at_s, to: point.at_s, met: 0, missed: 0, refused: 0, failed: 0 };
    const kept = point.classes[state.class] || {};
    bin.to = point.at_s;
    for (const name of ["met", "refused", "failed"]) bin[name] += kept[name] || 0;
    bin.missed += (kept.over || 0) - (kept.met || 0) - (kept.refused || 0) - (kept.failed || 0);
    bins.set(place, bin);
  }
  const rate = 1 / (per * now.step_s);
  const most = Math.max(...[...bins.values()].map((bin) => ENDS.reduce((sum, name) => sum + bin[name], 0) * rate), 0.5);
  const [svg, box] = frame("outcomes", 120, 1.1 * most, (value) => `${number(value, 1)}/s`);
  for (const bin of bins.values()) {
    let below = 0;
    for (const name of ENDS) {
      const height = bin[name] * rate;
      const left = Math.max(box.x(bin.from - now.step_s), box.left);
      const width = Math.max(box.x(bin.to) - left - 1, 1);
      if (height > 0) svg.append(drawn("rect", { class: name, x: left.toFixed(1), width: width.toFixed(1), y: box.y(below + height).toFixed(1), height: Math.max(box.y(below) - box.y(below + height), 0).toFixed(1) }));
      below += height;
    }
  }
  $("outcomes").replaceChildren(svg);
}

function charts() {
  if (!state.now) return;
  latency(state.now);
  outcomes(state.now);
}

function point(at) {
  if (!state.box || !state.points.length) return;
  const scale = state.box.width / $("latency").clientWidth;
  const distance = (each) => Math.abs(state.box.x(each.at_s) - at * scale);
  state.cursor = state.points.reduce((best, each, i) => (distance(each) < distance(state.points[best]) ? i : best), 0);
  charts();
}

function reach() {
  const chart = $("latency");
  chart.addEventListener("pointermove", (event) => point(event.clientX - chart.getBoundingClientRect().left));
  chart.addEventListener("pointerleave", () => { state.cursor = null; charts(); });
  chart.addEventListener("blur", () => { state.cursor = null; charts(); });
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -30, PageDown: 30, Home: -1e6, End: 1e6 }[event.key];
    if (!step) return;
    event.preventDefault();
    state.cursor = (state.cursor === null ? state.points.length - 1 : state.cursor) + step;
    charts();
  });
  new ResizeObserver(charts).observe(chart);
}

// --- asking ---

async function ask(path) {
  const answer = await fetch(location.origin + path, { cache: "no-store", signal: AbortSignal.timeout(5000) });
  if (!answer.ok) throw new Error(answer.status === 401 ? "the key is not valid any more: reload" : `status ${answer.status}`);
  return answer.json();
}

function keep(points) {
  const last = state.points.length ? state.points[state.points.length - 1].serial : 0;
  state.points.push(...points.filter((each) => each.serial > last));
  const gone = state.points.length - 450;
  if (gone > 0) {
    state.points.splice(0, gone);
    if (state.cursor !== null) state.cursor -= gone;
  }
}

function missing(points) {
  if (!points.length) return false;
  const last = state.points.length ? state.points[state.points.length - 1].serial : 0;
  return points[0].serial > last + 1 || points[points.length - 1].serial < last;
}

async function update() {
  const now = await ask("/headway/now");
  if (missing(now.points)) state.points = await ask("/headway/history");
  keep(now.points);
  state.now = now;
  state.heard = Date.now();
  if (!now.classes.some((c) => c.name === state.class)) state.class = now.classes[0].name;
  choose("choose-class", "class", now.classes.map((c) => [c.name, c.name]));
  choose("choose-kind", "kind", Object.entries(KINDS));
  for (const show of [header, cards, classes, replicas, advice, shadow, refusals]) show(now);
  bars("decisions", now.decisions.map((d) => [`${d.outcome}: ${d.reason}`, d.count]), "None yet");
  charts();
  $("foot").textContent = `Percentiles are of what ended in the last ${number(now.spread_s)} s; the history reaches back a quarter of an hour and begins anew with the decision process. Estimates: the cost model's power at the load in the books, and the GPUs' price by the hour.`;
}

async function run() {
  let said = "";
  try {
    if (document.visibilityState === "visible") await update();
  } catch (error) {
    said = error.message;
  }
  const since = state.heard ? (Date.now() - state.heard) / 1000 : Infinity;
  document.body.classList.toggle("stale", Boolean(said));
  $("fresh").textContent = said ? `no answer (${said})${state.heard ? `, last ${ago(since)}` : ""}` : "updating each second";
  setTimeout(run, 1000);
}

reach();
run();
