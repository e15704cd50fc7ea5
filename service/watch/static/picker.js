// The search box: a combobox as the ARIA practices describe it. The server searches; names are only ever text.
const PAUSE_MS = 120;

export class Picker {
  constructor(input, list, found, count, choose) {
    Object.assign(this, { input, list, found, count, choose, chosen: "", asked: 0, active: -1 });
    input.addEventListener("input", () => this.later());
    input.addEventListener("focus", () => (input.select(), this.search("")));
    input.addEventListener("blur", () => this.close());
    input.addEventListener("keydown", (event) => this.key(event));
    list.addEventListener("pointerdown", (event) => {
      event.preventDefault(); // before the blur, which would close the list under the pointer
      this.pressed = new Promise((done) => (this.release = done));
    });
    const released = () => {
      const release = this.release; // of this press: another may begin meanwhile
      setTimeout(() => release?.(), PAUSE_MS); // a finger's click comes a moment after its release
    };
    for (const end of ["pointerup", "pointercancel"]) addEventListener(end, released);
    found.addEventListener("click", (event) => {
      const item = event.target.closest("[role=option]");
      if (item) this.take(item);
    });
  }

  /** Show this name as the one that is chosen. */
  show(name) {
    this.chosen = name;
    if (document.activeElement !== this.input || this.list.hidden) this.input.value = name;
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.search(this.input.value), PAUSE_MS);
  }

  async search(text) {
    const asked = ++this.asked;
    let answer;
    try {
      const response = await fetch(`/api/series?${new URLSearchParams({ q: text.trim() })}`);
      if (!response.ok) throw new Error(response.status);
      answer = await response.json();
    } catch {
      answer = { count: 0, known: 0, names: [], lost: true };
    }
    let press;
    do {
      press = this.pressed;
      await press; // a click whose option is replaced between press and release chooses nothing
    } while (press !== this.pressed);
    if (asked !== this.asked || document.activeElement !== this.input) return;
    this.found.replaceChildren(...answer.names.map((name, i) => this.option(name, i)));
    const { count, known, names } = answer;
    const more = count > names.length ? `the first ${names.length} of ` : "";
    this.count.textContent = answer.lost
      ? "The server does not answer"
      : count ? `${more}${count.toLocaleString("en")} of ${known.toLocaleString("en")} series` : "No series has that in its name";
    this.list.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
    this.activate(names.indexOf(this.chosen));
  }

  option(name, i) {
    const item = document.createElement("li");
    item.id = `found-${i}`;
    item.setAttribute("role", "option");
    item.setAttribute("aria-selected", String(name === this.chosen));
    item.textContent = name;
    item.title = name;
    item.series = name;
    return item;
  }

  activate(i) {
    const items = this.found.children;
    items[this.active]?.classList.remove("active");
    this.active = Math.min(i, items.length - 1);
    const item = items[this.active];
    item?.classList.add("active");
    item?.scrollIntoView({ block: "nearest" });
    if (item) this.input.setAttribute("aria-activedescendant", item.id);
    else this.input.removeAttribute("aria-activedescendant");
  }

  key(event) {
    const open = !this.list.hidden;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (!open) this.search("");
      else this.activate(Math.max(0, this.active + (event.key === "ArrowDown" ? 1 : -1)));
    } else if (event.key === "Enter" && open) {
      const item = this.found.children[Math.max(0, this.active)];
      if (item) this.take(item);
    } else if (event.key === "Escape") {
      this.input.value = this.chosen;
      this.close();
    }
  }

  take(item) {
    this.chosen = item.series;
    this.input.value = item.series;
    this.close();
    this.choose(item.series);
  }

  close() {
    clearTimeout(this.timer);
    this.asked += 1;
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
    this.input.value = this.chosen;
  }
}
