// The page: what was chosen, what came, and one drawing for each frame of the screen at the most.
import { Chart } from "./chart.js";
import { Data } from "./data.js";
import { Fleet } from "./fleet.js";
import * as say from "./format.js";
import { Picker } from "./picker.js";
import { showStatus, showTiles } from "./tiles.js";
import { Stream } from "./stream.js";

const $ = (id) => document.getElementById(id);
const text = (id, value) => $(id).textContent !== value && ($(id).textContent = value);

const choice = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
let span = innerWidth < 620 ? 48 : 168; // a narrow chart shows less, so that it can be read
const HINT = "Point at the chart, or use the arrow keys on it, to read its values.";
let data = null;
let about = null;
let waiting = false; // a frame is asked for
let next = 0; // not before then is drawn again

const chart = new Chart($("chart"), (idx) => text("readout", chart?.sentence(idx) || HINT));
const fleet = new Fleet(
  (series, step) => choose({ series }, step),
  (filter) => choose({ ...filter, series: "" }),
);
const picker = new Picker($("series"), $("list"), $("found"), $("count"), (name) => choose({ series: name, target: choice.target }));
const stream = new Stream({
  all: (all) => {
    data = new Data(all);
    describe(all);
    later();
  },
  more: (more) => {
    if (!data) return;
    data.add(more);
    later();
  },
  status: (status) => {
    $("back").hidden = status.series < 2;
    showStatus(status, about, choice.series, Boolean(data?.about.known));
  },
  state: (state) => connection(state),
});

/** `step`: the browser's back button returns from there. */
function choose(next, step = false) {
  for (const key of ["series", "target", "ahead", "q", "group"]) {
    if (key in next) choice[key] = next[key];
    if (!choice[key]) delete choice[key];
  }
  // After the #: the browser keeps it to itself, and it can be sent to somebody as a link.
  history[step ? "pushState" : "replaceState"](null, "", `#${new URLSearchParams(choice)}`);
  show();
}

/** The fleet, or the series that is chosen. */
function show() {
  const { series, target, ahead, q = "", group = "" } = choice;
  document.querySelector("main").dataset.view = series ? "series" : "fleet";
  picker.show(series ?? "");
  $("back").href = `#${new URLSearchParams({ ...(q && { q }), ...(group && { group }) })}`;
  if (series) fleet.hide();
  else fleet.show({ q, group });
  $("fleet").hidden = Boolean(series) || !fleet.states;
  if (!series) {
    data = null;
    $("stage").hidden = true;
    $("empty").hidden = Boolean(fleet.states);
    document.title = "tidecast";
  }
  stream.follow(series ? { series, ...(target && { target }), ...(ahead && { ahead }) } : null);
}

/** What changes seldom: titles, choices, limits. */
function describe(all) {
  $("empty").hidden = all.known;
  $("stage").hidden = !all.known;
  if (!all.known) return;
  document.title = `${all.series} · tidecast`;
  text("title", all.target && all.targets.length > 1 ? `${all.series} · ${all.target}` : all.series);
  $("target-field").hidden = all.targets.length < 2;
  const shown = [...$("target").options].map((option) => option.value);
  if (shown.join("\n") !== all.targets.join("\n")) {
    $("target").replaceChildren(...all.targets.map((name) => new Option(name, name)));
  }
  $("target").value = all.target;
  $("ahead").max = Math.max(1, all.horizon);
  $("ahead").disabled = all.horizon < 2;
  if (document.activeElement !== $("ahead")) $("ahead").value = all.ahead;
  lead();
}

function lead() {
  const before = say.span(Number($("ahead").value), data?.about.step_ms ?? 0);
  text("ahead-text", `${before} before`);
  $("ahead").setAttribute("aria-valuetext", `${before} before`);
  text("key-past", `forecast ${before} before`);
}

/** One drawing for each frame at the most, and none while the last one's cost is not a third of the time since. */
function later() {
  if (waiting) return;
  waiting = true;
  setTimeout(() => requestAnimationFrame(frame), Math.max(0, next - performance.now()));
}

function frame() {
  waiting = false;
  if (!data?.about.known) return;
  const began = performance.now();
  draw();
  // The canvas is painted after this: what a drawing costs is known in the next frame.
  requestAnimationFrame(() => (next = began + 3 * (performance.now() - began)));
}

function draw() {
  const { about: all, fan } = data;
  const step = all.step_ms;
  const newest = data.newest;
  chart.draw(data.columns(span), newest, step);
  const value = newest === null ? null : data.actual.get(newest);
  text("now", value === null ? "missing" : say.number(value, chart.range));
  text("now-note", newest === null ? "" : `${all.target} at ${say.time(newest, step)} UTC`);
  const judged = data.judged(span);
  const level = all.level ? `the ${say.percent(all.level)} interval` : "the interval";
  text("key-out", judged.of ? `outside ${level}: ${judged.outside} of ${judged.of}` : `outside ${level}`);
  showTiles(data, step);
  const found = data.finding;
  text("finding", found ? say.reason({ ...found, step_ms: step, level: all.level }) : "");
  if (fan) table(fan, step, all.level);
  else text("next-note", "No forecast of this series has come yet. Is a worker running? tidecast serve");
  const summary = fan ? `, then the forecast up to ${say.time(fan.ts.at(-1), step)}` : "";
  $("chart").setAttribute("aria-label", `${all.target} of ${all.series}: measured and forecast${summary}. Arrow keys read the points.`);
  $("chart").dataset.newest = newest ?? "";
}

function table(fan, step, level) {
  const body = $("next");
  while (body.rows.length < fan.ts.length) {
    const row = body.insertRow();
    const head = document.createElement("th");
    head.scope = "row";
    row.append(head);
    row.insertCell();
    row.insertCell();
  }
  while (body.rows.length > fan.ts.length) body.deleteRow(-1);
  const last = fan.values.length - 1;
  const put = (cell, value) => cell.textContent !== value && (cell.textContent = value);
  fan.ts.forEach((ts, i) => {
    const [when, middle, range] = body.rows[i].cells;
    put(when, `${say.day(ts)}${step % 86_400_000 || !step ? ` ${say.clock(ts, step)}` : ""}`);
    put(middle, say.number(fan.values[fan.middle][i], chart.range));
    put(range, `${say.number(fan.values[0][i], chart.range)} – ${say.number(fan.values[last][i], chart.range)}`);
  });
  text("next-range", level ? `${say.percent(level)} interval` : "interval");
  const guessed = fan.guessed ? "; its steps are irregular, so the times are guesses" : "";
  text("next-note", `made at ${say.time(fan.made, step)}${fan.warm ? "" : ", still warming up"}${guessed}`);
}

function connection(state) {
  document.documentElement.dataset.stream = state;
  if (state !== "lost") return;
  $("state").dataset.state = "lost";
  text("state-text", "Reconnecting");
  $("step-page").dataset.done = "no";
  text("rate", "–");
  text("lag", "–");
}

function dark(on) {
  document.documentElement.dataset.theme = on ? "dark" : "light";
  $("theme").setAttribute("aria-pressed", String(on));
  chart.restyle();
  fleet.paint();
}
const isDark = () => document.documentElement.dataset.theme === "dark";

$("theme").addEventListener("click", () => {
  dark(!isDark());
  try {
    localStorage.setItem("tidecast-theme", isDark() ? "dark" : "light");
  } catch {
    // It then holds for this visit.
  }
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => dark(event.matches));
$("target").addEventListener("change", () => choose({ target: $("target").value }));
$("ahead").addEventListener("input", lead);
$("ahead").addEventListener("change", () => choose({ ahead: $("ahead").value }));
for (const radio of document.querySelectorAll("[name=span]")) {
  radio.addEventListener("change", () => {
    span = Number(radio.value);
    later();
  });
}
$(`span-${span}`).checked = true;
addEventListener("hashchange", () => {
  const next = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  choose({ series: next.series, target: next.target, ahead: next.ahead, q: next.q, group: next.group });
});
addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=range]):not([type=radio]), select");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") {
    event.preventDefault();
    $(choice.series ? "series" : "words").focus();
  } else if (event.key === "d") $("theme").click();
});

dark(isDark());
show();
try {
  about = await (await fetch("/api/about")).json();
  text("route", `${about.input_topic} → ${about.output_topic}`);
  text("foot", `tidecast ${about.version}, reading ${about.bootstrap_servers}.`);
} catch {
  // It is said by the stream's state.
}
