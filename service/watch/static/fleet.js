// All series at a glance: what needs attention first, a cell for each series, groups by the parts of their names.
import * as say from "./format.js";

const $ = (id) => document.getElementById(id);
const put = (node, value) => node.textContent !== value && (node.textContent = value);
const EVERY_MS = 2_000;
const TYPING_MS = 150;
const FEW = 12; // series; so few need no cells
const SPARK = { width: 160, height: 36 };
const STATES = { 0: "waiting", 1: "fine", 2: "notice", 3: "alarm" };

export class Fleet {
  /** `open` is called with a series, and whether the back button is to return from there; `narrow` with the filter. */
  constructor(open, narrow) {
    Object.assign(this, { open, narrow, filter: { q: "", group: "" }, shown: false, version: -1, names: [], states: "", asked: 0 });
    $("words").addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.narrow({ q: $("words").value.trim(), group: this.filter.group }), TYPING_MS);
    });
    $("words").addEventListener("keydown", (event) => event.key === "Enter" && $("rows").querySelector("a")?.click());
    $("rows").addEventListener("click", (event) => this.follow(event, "series", (name) => this.open(name, true)));
    for (const id of ["groups", "crumbs"]) {
      $(id).addEventListener("click", (event) => this.follow(event, "group", (group) => this.narrow({ q: this.filter.q, group })));
    }
    const cells = $("cells");
    cells.addEventListener("pointermove", (event) => put($("cell"), this.sentence(this.at(event))));
    cells.addEventListener("pointerleave", () => put($("cell"), ""));
    cells.addEventListener("click", (event) => this.names[this.at(event)] && this.open(this.names[this.at(event)], true));
    new ResizeObserver(() => this.paint()).observe(cells.parentElement);
  }

  follow(event, kind, act) {
    const link = event.target.closest("a");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    act(link.dataset[kind]);
  }

  show(filter) {
    const same = filter.q === this.filter.q && filter.group === this.filter.group;
    this.filter = filter;
    if (!same) this.version = -1;
    if (document.activeElement !== $("words")) $("words").value = filter.q;
    if (this.shown && same) return;
    this.shown = true;
    this.poll();
  }

  hide() {
    this.shown = false;
    clearTimeout(this.timer);
  }

  async poll() {
    clearTimeout(this.timer);
    const asked = ++this.asked;
    try {
      const [rows, cells] = await Promise.all([this.get("fleet"), this.get("cells", { version: this.version })]);
      if (asked !== this.asked || !this.shown) return;
      if (cells.names) this.names = cells.names;
      this.version = cells.version;
      this.states = cells.states;
      this.render(rows);
    } catch {
      // The stream's state says that the server is away.
    }
    if (this.shown && asked === this.asked) this.timer = setTimeout(() => this.poll(), EVERY_MS);
  }

  async get(what, more = {}) {
    const response = await fetch(`/api/${what}?${new URLSearchParams({ ...this.filter, ...more })}`);
    if (!response.ok) throw new Error(response.status);
    return response.json();
  }

  render(answer) {
    const { known, found, attention, rows } = answer;
    if (known === 1 && found === 1) {
      this.open(rows[0].series, false); // one alone needs no list
      return;
    }
    $("fleet").hidden = !known;
    $("empty").hidden = known > 0;
    const series = found === known ? `${say.count(known)} series` : `${say.count(found)} of ${say.count(known)} series`;
    const need = attention === 1 ? "1 needs attention" : `${say.count(attention)} need attention`;
    put($("fleet-title"), attention ? need : "Nothing needs attention");
    const kinds = Object.entries(answer.kinds).map(([kind, count]) => `${say.count(count)} ${say.KINDS[kind]}`);
    const waiting = answer.waiting ? [`${say.count(answer.waiting)} with too few readings yet`] : [];
    put($("fleet-note"), [`${series}: ${say.count(answer.fine)} as forecast`, ...kinds, ...waiting].join(", "));
    $("no-rows").hidden = found > 0;
    this.links(answer.groups);
    const list = $("rows");
    const known_rows = new Map([...list.children].map((item) => [item.dataset.series, item]));
    const items = rows.map((row) => this.row(known_rows.get(row.series) ?? this.blank(row.series), row));
    if (items.length !== list.children.length || items.some((item, i) => item !== list.children[i])) list.replaceChildren(...items);
    put($("rows-note"), found > rows.length ? `The first ${rows.length} of ${say.count(found)}; the filter finds the others.` : "");
    $("map").hidden = found < FEW;
    this.paint();
  }

  blank(series) {
    const item = $("row").content.firstElementChild.cloneNode(true);
    item.dataset.series = series;
    const link = item.firstElementChild;
    link.dataset.series = series;
    link.href = `#${new URLSearchParams({ series })}`;
    link.querySelector("b").textContent = series;
    link.querySelector("b").title = series;
    return item;
  }

  row(item, row) {
    const [chip, , why, spark, last] = item.firstElementChild.children;
    item.dataset.state = row.kind === "fine" || row.kind === "waiting" ? row.kind : "found";
    put(chip, say.KINDS[row.kind]);
    put(why, say.reason(row));
    const values = row.values.filter((value) => value !== null);
    const range = values.length ? Math.max(...values) - Math.min(...values) : 0;
    spark.firstElementChild.setAttribute("d", path(row.times, row.values));
    put(last, say.number(row.values.at(-1), range));
    return item;
  }

  links(groups) {
    const parts = this.filter.group.split("/").slice(0, -1);
    const crumbs = [["all series", ""], ...parts.map((part, i) => [part, `${parts.slice(0, i + 1).join("/")}/`])];
    $("crumbs").hidden = !this.filter.group;
    $("crumbs").replaceChildren(...crumbs.map(([text, group]) => groupLink(text, group)));
    $("groups").hidden = !groups.length;
    $("groups").replaceChildren(
      ...groups.map(({ group, series, attention }) => {
        const link = groupLink(group.slice(this.filter.group.length, -1), group);
        const note = document.createElement("small");
        note.textContent = attention ? `${say.count(attention)} of ${say.count(series)}` : say.count(series);
        link.append(" ", note);
        if (attention) link.className = "worse";
        return link;
      }),
    );
  }

  /** The cells: one square for each series, by name, row after row. */
  paint() {
    const canvas = $("cells");
    const width = canvas.parentElement.clientWidth;
    const count = this.states.length;
    if (!this.shown || !width || !count || $("map").hidden) return;
    this.side = Math.max(4, Math.min(18, Math.floor(Math.sqrt((width * 150) / count))));
    this.across = Math.max(1, Math.floor(width / this.side));
    const height = Math.ceil(count / this.across) * this.side;
    const ratio = devicePixelRatio;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.height = `${height}px`;
    const ink = canvas.getContext("2d");
    ink.scale(ratio, ratio);
    const style = getComputedStyle(canvas);
    const gap = this.side > 6 ? 2 : 1;
    for (const [digit, name] of Object.entries(STATES)) {
      ink.fillStyle = style.getPropertyValue(`--cell-${name}`);
      for (let i = 0; i < count; i++) {
        if (this.states[i] !== digit) continue;
        ink.fillRect((i % this.across) * this.side, Math.floor(i / this.across) * this.side, this.side - gap, this.side - gap);
      }
    }
    canvas.setAttribute("aria-label", `A cell for each of ${say.count(count)} series, by name. The list below has those that need attention.`);
  }

  at(event) {
    const { left, top } = $("cells").getBoundingClientRect();
    const column = Math.floor((event.clientX - left) / this.side);
    return column < this.across ? Math.floor((event.clientY - top) / this.side) * this.across + column : -1;
  }

  sentence(i) {
    const words = { waiting: "too few readings yet", fine: "as forecast", notice: "needs attention", alarm: "needs attention" };
    return this.names[i] === undefined ? "" : `${this.names[i]}: ${words[STATES[this.states[i]]]}`;
  }
}

function groupLink(text, group) {
  const link = document.createElement("a");
  link.textContent = text;
  link.dataset.group = group;
  link.href = `#${new URLSearchParams(group ? { group } : {})}`;
  return link;
}

/** The last readings as a line; a missing one makes a gap. */
function path(times, values) {
  const there = values.filter((value) => value !== null);
  if (!there.length) return "";
  const low = Math.min(...there);
  const range = Math.max(...there) - low || 1;
  const first = times[0];
  const all = times.at(-1) - first || 1;
  let pen = "M";
  let line = "";
  values.forEach((value, i) => {
    if (value === null) {
      pen = "M";
      return;
    }
    const x = ((times[i] - first) / all) * SPARK.width;
    const y = 2 + (1 - (value - low) / range) * (SPARK.height - 4);
    line += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
    pen = "L";
  });
  return line;
}
