// Small pieces of the page. Texts are only ever set as text, never as HTML.

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"; // as `spoke top` has them
const COLOURS = 12;

export function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function row(key, values) {
  const tr = element("tr", {}, ...values.map((value) => element("td", value.className === "number" ? { class: "number" } : {}, value)));
  tr.dataset.key = key;
  return tr;
}

export const link = (kind, key) => element("a", { href: `#/${kind}/${encodeURIComponent(key)}` }, key);

export const ticketNumber = (id) => Number(/^t-(\d+)$/.exec(id)?.[1] ?? 0);

export function mark(ticket, extra = "") {
  const number = ticketNumber(ticket);
  return element("span", { class: `cell c${number % COLOURS} ${extra}` }, LETTERS[number % LETTERS.length]);
}

export function cells(gpus) {
  return element("span", { class: "cells" }, ...gpus.map((gpu, index) => {
    const cell = gpu.kind === "free" ? element("span", { class: "cell free" }, "·")
      : gpu.kind === "unhealthy" ? element("span", { class: "cell unhealthy" }, "!")
        : mark(gpu.ticket, gpu.kind === "shared" ? "shared" : "");
    cell.title = `GPU ${index}: ${gpu.kind} ${gpu.ticket}`.trim();
    return cell;
  }));
}

export const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

export function size(bytes) {
  const units = ["", "K", "M", "G", "T", "P"];
  let value = bytes, at = 0;
  while (value >= 1024 && at < units.length - 1) [value, at] = [value / 1024, at + 1];
  return `${Number(value.toPrecision(3))}${units[at]}`;
}

export function age(ms) {
  const seconds = Math.max(0, ms / 1000);
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["m", 60]]) {
    if (seconds >= length) return `${Math.floor(seconds / length)}${unit}`;
  }
  return `${Math.floor(seconds)}s`;
}

export function date(ms) {
  const moment = new Date(ms);
  const two = (number) => String(number).padStart(2, "0");
  return `${two(moment.getMonth() + 1)}-${two(moment.getDate())} ${two(moment.getHours())}:${two(moment.getMinutes())}:${two(moment.getSeconds())}`;
}
