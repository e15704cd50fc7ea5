// Numbers and times as people read them. All times are UTC.
const DAY = 86_400_000;

const intl = (options) => new Intl.DateTimeFormat("en-GB", { timeZone: "UTC", hourCycle: "h23", ...options });
const TIME = intl({ hour: "2-digit", minute: "2-digit" });
const SECONDS = intl({ hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DATE = intl({ day: "numeric", month: "short" });
const YEAR = intl({ day: "numeric", month: "short", year: "numeric" });

/** `14 Nov, 13:00`; with the year where it is another. */
export function time(ms, step = 60_000) {
  const now = new Date().getUTCFullYear();
  const date = (new Date(ms).getUTCFullYear() === now ? DATE : YEAR).format(ms);
  return step % DAY === 0 && step > 0 ? date : `${date}, ${clock(ms, step)}`;
}

/** `13:00`, or `13:00:05` where steps are not whole minutes, or irregular. */
export function clock(ms, step = 60_000) {
  return (step && step % 60_000 === 0 ? TIME : SECONDS).format(ms);
}

/** `14 Nov`. */
export const day = (ms) => DATE.format(ms);

/** `6 h`, `90 min`, `2 d`; readings where there is no step. */
export function span(steps, step) {
  if (!step) return steps === 1 ? "1 reading" : `${steps} readings`;
  const ms = steps * step;
  for (const [unit, size] of [["d", DAY], ["h", 3_600_000], ["min", 60_000], ["s", 1_000]]) {
    if (ms % size === 0 && (unit !== "d" || ms >= 2 * DAY)) return `${ms / size} ${unit}`;
  }
  return `${ms} ms`;
}

/** As many decimals as tell apart what differs by a thousandth of `range`, and no more. */
export function number(value, range = 0) {
  if (value === null || value === undefined) return "–";
  const size = range > 0 ? range : Math.abs(value) || 1;
  const decimals = Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(size))));
  if (Math.abs(value) >= 1e7) return value.toExponential(3);
  return value.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

export const count = (value) => Math.round(value).toLocaleString("en");
export const percent = (share) => `${Math.round(share * 100)} %`;

/** `0.4 s`, `12 s`, `3 min`, `2 h`. */
export function age(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7_200) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3_600)} h`;
}

/** What a series is, in a word or two. */
export const KINDS = {
  higher: "higher", lower: "lower", erratic: "erratic", spike: "spike", unusual: "unusual", stuck: "stuck", silent: "silent",
  fine: "as forecast", waiting: "learning",
};

/** Why a series needs attention, or that it does not: `higher than forecast since 8 Nov, 14:00: 14 of 16 readings …`. */
export function reason({ kind, target, since, times_out: times, of, ahead, step_ms: step, level }) {
  const from = since ? ` since ${time(since, step)}` : "";
  const interval = level ? `the ${percent(level)} interval` : "the interval";
  const made = `of forecasts made ${span(ahead ?? 1, step)} before`;
  const said = {
    higher: () => `${target} is higher than forecast${from}: ${times} of ${of} readings above ${interval} ${made}`,
    lower: () => `${target} is lower than forecast${from}: ${times} of ${of} readings below ${interval} ${made}`,
    erratic: () => `${target} is less predictable than it was${from}: ${times} of ${of} readings outside ${interval}`,
    spike: () => `${target} had a reading far outside its forecast lately${from}`,
    unusual: () => `${target} left the range of all that was seen of it lately${from}`,
    stuck: () => `${target} has had the same value ${count(times)} times in a row${from}`,
    silent: () => `no reading${from}, ${count(times)} steps behind most series`,
    fine: () => "",
    waiting: () => "too few readings for forecasts to be trusted",
  };
  return said[kind]?.() ?? "";
}
