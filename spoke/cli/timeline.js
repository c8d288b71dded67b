"use strict";
// A Gantt of GPUs on a canvas: only what is in sight is drawn. Wheel zooms, dragging moves, the field filters.
const data = JSON.parse(document.getElementById("data").textContent);
const canvas = document.getElementById("chart"), tip = document.getElementById("tip");
const filter = document.getElementById("filter"), draw2d = canvas.getContext("2d");
const LEFT = 150, TOP = 24, ROW = 14;
const view = { begin: data.begin, end: data.end, top: 0 };
let rows = data.rows.map((_, row) => row), place = [], shown = [], together = [], wanted = false, drag = null;
const barsOf = data.rows.map(() => []), cellsOf = data.rows.map(() => []);
for (const bar of data.bars) barsOf[bar[0]].push(bar);
for (const cell of data.cells) cellsOf[cell[0]].push(cell);  // what short holdings took together: of no one ticket

function colour(ticket) {
  return `hsl(${(ticket * 137.508) % 360} 62% ${44 + (ticket % 3) * 8}%)`;
}
function matches(ticket, words) {
  const text = data.tickets[ticket].join(" ").toLowerCase();
  return words.every((word) => text.includes(word));
}
function applyFilter() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  const good = data.tickets.map((_, ticket) => matches(ticket, words));
  rows = []; shown = []; together = [];
  data.rows.forEach((name, row) => {
    const named = words.length && words.every((word) => name.toLowerCase().includes(word));
    const bars = named ? barsOf[row] : barsOf[row].filter((bar) => good[bar[3]]);
    if (bars.length || named || !words.length) {
      rows.push(row); shown.push(bars); together.push(named || !words.length ? cellsOf[row] : []);
    }
  });
  view.top = 0;
  document.getElementById("count").textContent = `${rows.length} of ${data.rows.length} GPUs`;
  later();
}
function x(ms) { return LEFT + (ms - view.begin) / (view.end - view.begin) * (canvas.clientWidth - LEFT); }
function timeAt(px) { return view.begin + (px - LEFT) / (canvas.clientWidth - LEFT) * (view.end - view.begin); }
function firstAfter(bars, ms, longest) {  // bars stand in the order of their begin; the longest tells how far back one can reach
  let low = 0, high = bars.length;
  while (low < high) { const mid = (low + high) >> 1; if (bars[mid][1] < ms - longest) low = mid + 1; else high = mid; }
  return low;
}
function later() { if (!wanted) { wanted = true; requestAnimationFrame(draw); } }
function draw() {
  wanted = false;
  const scale = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== width * scale) canvas.width = width * scale;
  if (canvas.height !== height * scale) canvas.height = height * scale;
  draw2d.setTransform(scale, 0, 0, scale, 0, 0);
  draw2d.clearRect(0, 0, width, height);
  draw2d.font = "11px system-ui, sans-serif"; draw2d.textBaseline = "middle";
  place = [];
  const fits = Math.ceil((height - TOP) / ROW);
  for (let at = view.top; at < Math.min(rows.length, view.top + fits); at++) {
    const y = TOP + (at - view.top) * ROW;
    draw2d.fillStyle = at % 2 ? "#8881" : "#8882"; draw2d.fillRect(LEFT, y, width - LEFT, ROW);
    draw2d.fillStyle = "#777"; draw2d.fillText(data.rows[rows[at]], 4, y + ROW / 2, LEFT - 8);
    drawCells(together[at] || [], y, width);
    const bars = shown[at] || [];
    let last = -1, lastRank = -1;
    for (let n = firstAfter(bars, view.begin, data.longest); n < bars.length && bars[n][1] <= view.end; n++) {
      const bar = bars[n];
      if (bar[2] < view.begin) continue;
      const from = Math.max(LEFT, x(bar[1])), to = Math.min(width, x(bar[2]));
      if (to - from < 1 && Math.floor(from) === last && bar[5] === lastRank) continue;  // less than a pixel, and drawn
      last = Math.floor(from); lastRank = bar[5];
      const tall = (ROW - 2) * bar[4] / 1000, up = y + 1 + (ROW - 2) * bar[5] / 1000;
      draw2d.fillStyle = colour(bar[3]); draw2d.fillRect(from, up, Math.max(1, to - from), tall);
      if (to - from > 40 && bar[4] === 1000) {
        draw2d.fillStyle = "#fff"; draw2d.fillText(data.tickets[bar[3]][0], from + 3, y + ROW / 2, to - from - 6);
      }
      place.push([from, up, Math.max(from + 1, to), up + tall, bar]);
    }
  }
  axis(width, height);
}
function drawCells(cells, y, width) {
  draw2d.fillStyle = "#888";
  for (let n = firstAfter(cells, view.begin, data.cell_ms); n < cells.length && cells[n][1] <= view.end; n++) {
    const cell = cells[n];
    if (cell[2] < view.begin) continue;
    const from = Math.max(LEFT, x(cell[1])), to = Math.min(width, x(cell[2])), tall = Math.max(1, (ROW - 2) * cell[4] / 1000);
    draw2d.fillRect(from, y + ROW - 1 - tall, Math.max(1, to - from), tall);
    place.push([from, y + 1, Math.max(from + 1, to), y + ROW - 1, null, cell]);
  }
}
function axis(width, height) {
  const steps = [1, 1e3, 5e3, 15e3, 6e4, 3e5, 9e5, 36e5, 216e5, 864e5, 6048e5, 2592e6, 31536e6];
  const span = view.end - view.begin, step = steps.find((ms) => span / ms * 130 < width - LEFT) || span / 8;
  draw2d.fillStyle = "#777"; draw2d.strokeStyle = "#8884"; draw2d.beginPath();
  for (let ms = Math.ceil(view.begin / step) * step; ms <= view.end; ms += step) {
    const at = x(ms), text = new Date(ms).toISOString();
    draw2d.moveTo(at, TOP); draw2d.lineTo(at, height);
    draw2d.fillText(step >= 864e5 ? text.slice(0, 10) : text.slice(5, 10) + " " + text.slice(11, step < 1e3 ? 23 : 19), at + 2, TOP / 2);
  }
  draw2d.stroke();
}
function zoom(factor, px) {
  const at = timeAt(px), span = Math.max(10, Math.min((view.end - view.begin) * factor, (data.end - data.begin) * 1.2));
  const left = (at - view.begin) / (view.end - view.begin);
  view.begin = at - span * left; view.end = view.begin + span; later();
}
function scroll(by) {
  const fits = Math.floor((canvas.clientHeight - TOP) / ROW);
  view.top = Math.max(0, Math.min(rows.length - fits, view.top + by)); later();
}
function move(ms) { view.begin += ms; view.end += ms; later(); }
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  if (event.shiftKey || event.offsetX < LEFT) scroll(Math.sign(event.deltaY || event.deltaX) * 3);
  else zoom(event.deltaY > 0 ? 1.25 : 0.8, event.offsetX);
}, { passive: false });
canvas.addEventListener("pointerdown", (event) => { drag = [event.clientX, event.clientY]; canvas.setPointerCapture(event.pointerId); });
canvas.addEventListener("pointerup", () => { drag = null; });
canvas.addEventListener("pointermove", (event) => {
  if (drag) {
    move((drag[0] - event.clientX) / (canvas.clientWidth - LEFT) * (view.end - view.begin)); drag[0] = event.clientX;
    const by = Math.trunc((drag[1] - event.clientY) / ROW);
    if (by) { scroll(by); drag[1] = event.clientY; }
  }
  const px = event.offsetX, py = event.offsetY;
  const hit = place.findLast((box) => box[0] <= px && px <= box[2] && box[1] <= py && py <= box[3]);
  tip.hidden = !hit;
  if (hit) {
    tip.style.left = Math.min(event.clientX + 12, innerWidth - 330) + "px"; tip.style.top = event.clientY + 12 + "px";
  }
  if (hit && hit[5]) {
    const [row, begin, end, count, milli] = hit[5];
    tip.textContent = [data.rows[row], `${new Date(begin).toISOString()} to ${new Date(end).toISOString()}`,
      `${milli / 10} % held by what was short`, `${count.toLocaleString()} of them began here`].join("\n");
  } else if (hit) {
    const [row, begin, end, ticket, milli] = hit[4], [id, name, user, reason] = data.tickets[ticket];
    tip.textContent = [`${id}${name ? ` (${name})` : ""}`, `user ${user || "-"}`, `${data.rows[row]}${milli < 1000 ? `, ${milli / 1000} of it` : ""}`,
      `${new Date(begin).toISOString()} to ${new Date(end).toISOString()}`, `${((end - begin) / 1000).toLocaleString()} s`, reason].filter(Boolean).join("\n");
  }
});
canvas.addEventListener("dblclick", reset);
document.getElementById("reset").addEventListener("click", reset);
function reset() { view.begin = data.begin; view.end = data.end; view.top = 0; later(); }
document.addEventListener("keydown", (event) => {
  if (event.target === filter) return;
  const span = view.end - view.begin, middle = (canvas.clientWidth + LEFT) / 2;
  const keys = { ArrowLeft: () => move(-span / 8), ArrowRight: () => move(span / 8), ArrowUp: () => scroll(-3), ArrowDown: () => scroll(3),
    PageUp: () => scroll(-20), PageDown: () => scroll(20), "+": () => zoom(0.8, middle), "-": () => zoom(1.25, middle), 0: reset };
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
});
filter.addEventListener("input", applyFilter);
new ResizeObserver(later).observe(canvas);
applyFilter();
document.body.dataset.ready = "yes";
