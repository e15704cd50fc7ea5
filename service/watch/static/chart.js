// The chart: uPlot, fed with the columns of data.js. Colours come from the style sheet, so that there is one place for them.
import { clock, day, number, time } from "./format.js";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

const LINES = { 3: "past", 8: "fan", 9: "actual", 10: "out" }; // columns that have a line or a mark of their own

export class Chart {
  constructor(place, read) {
    Object.assign(this, { place, read, plot: null, step: 60_000, made: null, range: 0 });
    new ResizeObserver(() => this.fit()).observe(place);
    place.addEventListener("keydown", (event) => this.key(event));
  }

  /** Draw again from nothing, in the colours of now. */
  restyle() {
    const data = this.plot?.data;
    this.plot?.destroy();
    this.plot = null;
    if (data) this.draw(data, this.made, this.step);
  }

  draw(columns, made, step) {
    this.made = made;
    this.step = step;
    this.range = spread(columns);
    if (!this.plot) this.plot = new window.uPlot(this.options(), columns, this.place);
    else this.plot.setData(columns);
  }

  options() {
    const line = (name, width, more = {}) => ({ stroke: colour(name), width, points: { show: false }, ...more });
    const edge = { stroke: "transparent", width: 0, points: { show: false } };
    const font = `12px ${getComputedStyle(document.body).fontFamily}`;
    const axis = { stroke: colour("muted"), font, grid: { stroke: colour("grid"), width: 1 }, ticks: { show: false } };
    return {
      ...this.size(),
      ms: 1,
      tzDate: (ts) => window.uPlot.tzDate(new Date(ts), "Etc/UTC"),
      legend: { show: false },
      padding: [12, 20, 0, 0],
      cursor: { drag: { x: false, y: false }, y: false, hover: { prox: 8 }, points: { size: 9, width: 0, fill: (u, i) => (LINES[i] ? colour(LINES[i]) : "transparent") } },
      scales: { x: { time: true }, y: { range: (u, low, high) => window.uPlot.rangeNum(low ?? 0, high ?? 1, { min: { pad: 0.08 }, max: { pad: 0.08 } }) } },
      axes: [
        { ...axis, space: 74, size: (u, values) => (values?.some((label) => label?.includes("\n")) ? 40 : 26), values: (u, splits) => labels(splits) },
        { ...axis, size: (u, values) => 14 + 7.2 * Math.max(2, ...(values ?? []).map((text) => text?.length ?? 0)), values: (u, splits) => splits.map((v) => short(v, splits)) },
      ],
      series: [
        {},
        edge, edge, line("past", 1.5),
        edge, edge, edge, edge, line("fan", 2, { dash: [5, 4] }),
        line("actual", 1.8, { points: { show: false, size: 6, width: 0, fill: colour("actual"), filter: (u, i) => dots(u.data[i]) } }),
        { stroke: colour("out"), width: 0, paths: () => null, points: { show: true, size: 8, width: 2, stroke: colour("out"), fill: colour("surface") } },
      ],
      bands: [
        { series: [1, 2], fill: colour("past-band") },
        { series: [4, 5], fill: colour("fan-band") },
        { series: [6, 7], fill: colour("fan-band") },
      ],
      hooks: {
        drawAxes: [(u) => this.mark(u)],
        setCursor: [(u) => this.read(u.cursor.idx ?? null)],
      },
    };
  }

  /** A line where what is known ends. */
  mark(u) {
    if (this.made === null) return;
    const x = Math.round(u.valToPos(this.made, "x", true));
    const { left, top, width, height } = u.bbox;
    if (x < left || x > left + width) return;
    const { ctx } = u;
    ctx.save();
    ctx.fillStyle = colour("ahead");
    ctx.fillRect(x, top, left + width - x, height);
    ctx.strokeStyle = colour("muted");
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
    ctx.beginPath();
    ctx.moveTo(x, top);
    ctx.lineTo(x, top + height);
    ctx.stroke();
    ctx.restore();
  }

  size() {
    return { width: Math.max(120, this.place.clientWidth), height: Math.max(160, this.place.clientHeight) };
  }

  fit() {
    if (this.plot) this.plot.setSize(this.size());
  }

  key(event) {
    const u = this.plot;
    const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -24, PageDown: 24 }[event.key];
    const count = u?.data[0].length ?? 0;
    if (!count) return;
    const last = u.data[9].findLastIndex((value) => value !== undefined);
    let idx;
    if (by) idx = Math.min(count - 1, Math.max(0, (u.cursor.idx ?? last) + (u.cursor.idx === null ? 0 : by)));
    else if (event.key === "Home") idx = 0;
    else if (event.key === "End") idx = count - 1;
    else return;
    event.preventDefault();
    u.setCursor({ left: u.valToPos(u.data[0][idx], "x"), top: u.over.clientHeight / 2 });
  }

  /** What the columns say at one place, as a sentence; "" where nothing is under the pointer. */
  sentence(idx) {
    const u = this.plot;
    if (idx === null || !u || idx >= u.data[0].length) return "";
    const at = (column) => u.data[column][idx];
    const say = (value) => number(value, this.range);
    const parts = [];
    if (at(9) !== undefined) parts.push(at(9) === null ? "missing" : `measured ${say(at(9))}`);
    if (at(3) !== undefined && at(3) !== null) parts.push(`was forecast ${say(at(3))} (${say(at(2))} to ${say(at(1))})`);
    if (u.data[0][idx] > this.made && at(8) !== undefined) parts.push(`forecast ${say(at(8))} (${say(at(5))} to ${say(at(4))})`);
    if (at(10) !== undefined && at(10) !== null) parts.push("outside the interval");
    return `${time(u.data[0][idx], this.step)}: ${parts.join(" · ") || "nothing"}`;
  }
}

/** The day where it begins, else the time of day. */
function labels(splits) {
  const step = splits[1] - splits[0];
  let before = null;
  return splits.map((ms) => {
    const date = day(ms);
    const fresh = date !== before;
    before = date;
    if (step >= 86_400_000) return date;
    return fresh ? `${clock(ms, step)}\n${date}` : clock(ms, step);
  });
}

function short(value, splits) {
  const step = Math.abs(splits[1] - splits[0]) || 1;
  if (Math.abs(value) >= 1e6) return value.toExponential(1);
  const decimals = Math.max(0, Math.min(6, -Math.floor(Math.log10(step) + 1e-9)));
  return value.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

/** Where a dot is drawn: the newest reading, and those with a gap on both sides, which no line leads to. */
export function dots(values) {
  const there = [...values.keys()].filter((i) => values[i] !== undefined);
  const known = (k) => typeof values[there[k]] === "number";
  const newest = there.findLastIndex((_, k) => known(k));
  return there.filter((_, k) => known(k) && (k === newest || !(known(k - 1) || known(k + 1))));
}

function spread(columns) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of columns[9]) {
    if (value === undefined || value === null) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return high > low ? high - low : 0;
}
