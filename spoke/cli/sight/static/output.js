// The output of a ticket's actors, as it comes. Texts are only ever set as text, never as HTML.

import { element } from "./draw.js";

const LINES_MAX = 2000;

export class Output {
  constructor(ticket) {
    this.ticket = ticket;
    this.choice = element("select", { id: "rank", "aria-label": "rank" }, element("option", { value: "" }, "all ranks"));
    this.lines = element("pre", { id: "output", tabindex: "0" });
    this.note = element("p", { id: "output-note", class: "dim" });
    this.element = element("section", {}, element("h2", {}, "Output ", this.choice), this.note, this.lines);
    this.choice.addEventListener("change", () => this.follow());
    this.ranks = 0;
    this.follow();
  }

  setRanks(number) {
    for (; this.ranks < number; this.ranks += 1) {
      this.choice.append(element("option", { value: String(this.ranks) }, `rank ${this.ranks}`));
    }
  }

  follow() {
    this.close();
    this.lines.replaceChildren();
    this.note.textContent = "asking the agents …";
    const rank = this.choice.value;
    this.source = new EventSource(`/api/logs/${encodeURIComponent(this.ticket)}${rank === "" ? "" : `?rank=${rank}`}`);
    this.source.addEventListener("lines", (event) => this.add(JSON.parse(event.data), rank !== ""));
    this.source.addEventListener("note", (event) => this.say(JSON.parse(event.data)));
    this.source.addEventListener("end", (event) => {
      this.close();
      this.say(JSON.parse(event.data));
    });
    this.source.addEventListener("open", () => {
      this.lines.replaceChildren(); // after a break everything comes again
      this.say("");
    });
    this.source.addEventListener("error", () => this.say("the output cannot be had; trying again"));
  }

  add(lines, alone) {
    const atEnd = this.lines.scrollTop + this.lines.clientHeight >= this.lines.scrollHeight - 4;
    this.lines.append(...lines.map(([rank, text]) => {
      const prefix = alone ? [] : [element("span", { class: `rank r${rank % 12}` }, `[${rank}]`), " "];
      return element("div", {}, ...prefix, text || " ");
    }));
    while (this.lines.childElementCount > LINES_MAX) this.lines.firstElementChild.remove();
    if (atEnd) this.lines.scrollTop = this.lines.scrollHeight;
  }

  say(text) {
    this.note.textContent = text;
    this.note.hidden = !text;
  }

  close() {
    this.source?.close();
  }
}
