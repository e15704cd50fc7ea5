// The stream of events, which comes back by itself: at once, then after 1, 2, 4 and at most 8 seconds.
const SILENT_MS = 8_000; // a status comes each second; a stream that says nothing for so long is dead

export class Stream {
  /** `on` has all, more, status and state (connecting, open, lost). */
  constructor(on) {
    this.on = on;
    this.failures = 0;
    this.query = "";
    setInterval(() => this.watch(), 1_000);
    addEventListener("online", () => this.source || this.open());
  }

  /** Listen to this series from now on; null = to the status alone. */
  follow(choice) {
    this.query = choice ? `?${new URLSearchParams(choice)}` : "";
    this.open();
  }

  open() {
    clearTimeout(this.timer);
    this.source?.close();
    const source = new EventSource(`/api/stream${this.query}`);
    this.source = source;
    this.heard = performance.now();
    const hear = (kind, act) =>
      source.addEventListener(kind, (event) => {
        if (source !== this.source) return;
        this.heard = performance.now();
        act(JSON.parse(event.data));
      });
    hear("all", this.on.all);
    hear("more", this.on.more);
    hear("status", (status) => {
      this.failures = 0;
      this.on.state("open");
      this.on.status(status);
    });
    // The browser's own retries end for good at the first answer that is not 200, so all of them are ours.
    source.onerror = () => source === this.source && this.lose();
  }

  lose() {
    this.source?.close();
    this.source = null;
    const wait = this.failures ? Math.min(8_000, 500 * 2 ** this.failures) : 300;
    this.failures += 1;
    this.on.state("lost", wait);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.open(), wait);
  }

  watch() {
    if (this.source && performance.now() - this.heard > SILENT_MS) this.lose();
  }
}
