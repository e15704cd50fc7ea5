// One series as it is drawn: what the server sent, joined by time into the columns of the chart. Pure.

const NO_FORECAST = { low: null, middle: null, high: null };

export class Data {
  constructor(all, keep = 2_000) {
    this.keep = keep;
    this.about = all;
    this.actual = new Map();
    this.past = new Map();
    this.fan = all.fan;
    this.quality = all.quality;
    this.finding = all.finding;
    this.add(all);
  }

  /** What is new: readings, forecasts that came true or will, the newest forecast, the quality. */
  add(news) {
    const [times, values] = news.readings;
    times.forEach((ts, i) => this.actual.set(ts, values[i]));
    if (news.past) {
      const [due, low, middle, high, warm, made] = news.past;
      due.forEach((ts, i) => this.past.set(ts, { low: low[i], middle: middle[i], high: high[i], warm: warm[i], made: made[i] }));
    }
    if (news.fan) this.fan = news.fan;
    if (news.quality !== undefined) this.quality = news.quality;
    if (news.finding !== undefined) this.finding = news.finding;
    for (const map of [this.actual, this.past]) {
      while (map.size > this.keep) map.delete(map.keys().next().value);
    }
  }

  get newest() {
    let last = null;
    for (const ts of this.actual.keys()) last = ts;
    return last;
  }

  /** Whether the reading at `ts` lies outside the widest interval of the forecast made for it; null = cannot be said. */
  outside(ts) {
    const value = this.actual.get(ts);
    const forecast = this.past.get(ts);
    if (value === null || value === undefined || !forecast?.warm || forecast.low === null) return null;
    return value < forecast.low || value > forecast.high;
  }

  /**
   * [x, past high, past low, past middle, outer high, outer low, inner high, inner low, fan middle, actual, outside]
   * for the last `span` readings (0 = all). Where a column has nothing to say at a time it is undefined; a missing value
   * is null, and makes a gap.
   */
  columns(span) {
    const times = [...this.actual.keys()];
    const shown = span ? times.slice(-span) : times;
    const first = shown[0] ?? -Infinity;
    const newest = shown.at(-1) ?? -Infinity;
    const xs = new Set(shown);
    for (const ts of this.past.keys()) if (ts >= first && ts <= newest) xs.add(ts);
    const fan = this.fan;
    const ahead = new Map();
    if (fan) {
      const { values, middle } = fan;
      const last = values.length - 1;
      const inner = last >= 4;
      if (this.actual.has(fan.made)) {
        const at = this.actual.get(fan.made);
        ahead.set(fan.made, Array(5).fill(at ?? undefined));
        xs.add(fan.made);
      }
      fan.ts.forEach((ts, i) => {
        ahead.set(ts, [values[last][i], values[0][i], inner ? values[last - 1][i] : undefined, inner ? values[1][i] : undefined, values[middle][i]]);
        xs.add(ts);
      });
    }
    const gaps = this.gaps(shown);
    const unforecast = this.gaps([...this.past.keys()].filter((ts) => ts >= first && ts <= newest));
    for (const ts of [...gaps, ...unforecast]) xs.add(ts);
    const x = [...xs].sort((a, b) => a - b);
    const nothing = [];
    const columns = Array.from({ length: 11 }, () => new Array(x.length));
    x.forEach((ts, i) => {
      const past = unforecast.has(ts) ? NO_FORECAST : ts <= newest ? this.past.get(ts) : undefined;
      const fanned = ahead.get(ts) ?? nothing;
      const missing = gaps.has(ts) || unforecast.has(ts);
      const actual = this.actual.has(ts) || !missing ? this.actual.get(ts) : null;
      const row = [ts, past?.high, past?.low, past?.middle, ...[0, 1, 2, 3, 4].map((k) => fanned[k]), actual, this.outside(ts) ? actual : undefined];
      row.forEach((value, k) => (columns[k][i] = value));
    });
    return columns;
  }

  /** The first missing step of each gap: no line is drawn across it, for nobody measured, or forecast, what was there. */
  gaps(times) {
    const step = this.about.step_ms;
    const found = new Set();
    for (let i = 1; step && i < times.length; i++) {
      if (times[i] - times[i - 1] > 1.5 * step) found.add(times[i - 1] + step);
    }
    return found;
  }

  /** How many readings of those in view can be judged, and how many of them lie outside. */
  judged(span) {
    const times = [...this.actual.keys()];
    const judged = (span ? times.slice(-span) : times).map((ts) => this.outside(ts)).filter((each) => each !== null);
    return { of: judged.length, outside: judged.filter(Boolean).length };
  }
}
