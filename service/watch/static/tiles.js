// The tiles, the state in the corner, and what is still waited for.
import * as say from "./format.js";

const $ = (id) => document.getElementById(id);
const text = (id, value) => $(id).textContent !== value && ($(id).textContent = value);

const STATES = {
  connecting: ["waiting", "Looking for Kafka"],
  waiting: ["waiting", "Waiting for topics"],
  behind: ["waiting", "Catching up"],
  live: ["live", "Live"],
  away: ["lost", "Kafka is away"],
};

/** Once a second: the stream as a whole. */
export function showStatus(status, about, series, known) {
  document.querySelector("main").dataset.series = status.series ? "yes" : "no";
  const [state, words] = STATES[status.kafka] ?? STATES.connecting;
  const idle = status.kafka === "live" && !status.readings;
  $("state").dataset.state = idle ? "waiting" : state;
  $("state").title = status.reason;
  text("state-text", idle ? "Waiting for readings" : words);
  text("rate", rate(status.readings_per_s));
  const count = `${say.count(status.series)} series`;
  text("rate-note", status.skipped ? `${count}; ${say.count(status.skipped)} left out to keep up` : count);
  text("lag", say.count(status.waiting));
  text("lag-note", status.waiting ? `not answered, for ${say.age(status.waiting_s)}` : "all readings are answered");
  $("lag").closest(".tile").classList.toggle("warn", status.waiting > 0 && status.waiting_s > 10);
  if (known || (!series && status.series)) return;
  const missing = Boolean(series && status.series);
  text("empty-title", missing ? "This series is not known here" : "Waiting for the first forecast");
  text("empty-text", missing ? `Nothing of ${series} has come lately. Choose another above, or wait.` : "The chart shows itself as soon as there is something to see.");
  steps(status, about);
}

function steps(status, about) {
  const there = ["live", "behind", "waiting"].includes(status.kafka);
  step("page", true, "is up");
  step("kafka", there, there ? `answers at ${about?.bootstrap_servers ?? ""}` : status.reason || `looking at ${about?.bootstrap_servers ?? ""}`);
  const absent = (topic) => status.kafka === "waiting" && ` ${status.reason} `.includes(` ${topic} `);
  const none = (topic) => (absent(topic) ? `there is no topic ${topic} yet: tidecast topics create` : `none yet on ${topic}`);
  step("readings", status.readings > 0, status.readings ? `${say.count(status.readings)} read` : none(about?.input_topic));
  step("forecasts", status.forecasts > 0, status.forecasts ? `${say.count(status.forecasts)} read` : `${none(about?.output_topic)}${absent(about?.output_topic) ? "" : "; is a worker running? tidecast serve"}`);
}

function step(name, done, words) {
  const item = $(`step-${name}`);
  item.dataset.done = done ? "yes" : "no";
  const note = item.querySelector("span");
  if (note.textContent !== words) note.textContent = words;
}

/** With each drawing: the series in view. */
export function showTiles(data, step) {
  const { quality, about } = data;
  const lead = quality ? say.span(quality.ahead, step) : "";
  const less = quality?.skill ?? null;
  text("skill", less === null ? "–" : say.percent(Math.abs(less)));
  const answers = about.model ? `; ${about.model.replace(/@.*/, "")} answers` : "";
  text("skill-note", (quality?.count ? `${less < 0 ? "more" : "less"} error than persistence, ${lead} ahead` : "not scored yet") + answers);
  text("coverage", quality?.coverage === null || !quality ? "–" : say.percent(quality.coverage));
  text("coverage-note", quality?.count ? `of ${say.count(quality.count)} readings; meant: ${say.percent(about.level)}` : "not scored yet");
  $("skill").closest(".tile").classList.toggle("warn", (quality?.skill ?? 1) < 0);
  const off = quality?.count >= 50 && quality.coverage !== null && Math.abs(quality.coverage - about.level) > 0.1;
  $("coverage").closest(".tile").classList.toggle("warn", Boolean(off));
}

const rate = (value) => (value >= 100 ? say.count(value) : value.toFixed(value >= 10 || value === 0 ? 0 : 1));
