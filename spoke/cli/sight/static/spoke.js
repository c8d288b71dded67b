// The dashboard: it keeps the board that the server streams, and draws what is different. No library, no build step.

import { act, get, stream } from "./server.js";
import { cells, count, date, element, age, link, mark, row, size, ticketNumber } from "./draw.js";
import { Output } from "./output.js";

const SECTIONS = ["nodes", "tickets", "queue", "actors", "events"];
const byId = (id) => document.getElementById(id);

const live = emptyBoard(); // what is now; goes on while the past is looked at
let shown = live; // what is on the screen: live, or a board of the past
let about = { read_only: true };
let output = null; // of the ticket whose page is shown
let token = ""; // kept in memory only: gone when the page is
let span = { first_ms: 0, last_ms: 0 };

function emptyBoard() {
  return { head: {}, ...Object.fromEntries(SECTIONS.map((name) => [name, new Map()])) };
}

function apply(board, changes) {
  board.head = changes.head;
  for (const name of SECTIONS) {
    for (const one of changes[name]?.set ?? []) board[name].set(one.key, one);
    for (const key of changes[name]?.drop ?? []) board[name].delete(key);
  }
}

// --- tables: a row stays as long as its values do -------------------------------------------------------------------

const ORDERS = {
  nodes: (a, b) => (a.key < b.key ? -1 : 1),
  tickets: (a, b) => ticketNumber(a.key) - ticketNumber(b.key),
  queue: (a, b) => a.place - b.place,
  events: (a, b) => eventOrder(b.key, a.key),
};

const CELLS = {
  nodes: (one) => [link("node", one.key), state(one.state), cells(one.gpus), number(one.gpus_free),
    number(`${one.cpus_free}/${one.cpus}`), number(`${size(one.memory_free)}/${size(one.memory)}`),
    one.remark ? element("span", { class: "drained" }, one.remark) : links("ticket", one.tickets)],
  tickets: (one) => [ticketLink(one), state(one.state), number(ageOf(one)), one.gang, one.needs,
    number(`${one.running}/${one.actors}`), one.user, one.name, links("node", one.nodes)],
  queue: (one) => [number(one.place), ticketLink(one), number(ageOf(one)), one.gang, one.needs, one.user, one.name,
    one.reason],
  events: (one) => [element("span", { class: "dim" }, date(Number(one.key.split("-")[0]))), one.type, one.text],
};

function eventOrder(a, b) {
  const [ams, aseq] = a.split("-").map(Number), [bms, bseq] = b.split("-").map(Number);
  return ams - bms || aseq - bseq;
}

const state = (name) => element("span", { class: name }, name);
const number = (text) => element("span", { class: "number" }, String(text));
const ageOf = (one) => age(shown.head.now_ms - one.since_ms);
const ticketLink = (one) => element("span", {}, mark(one.key), " ", link("ticket", one.key));
const links = (kind, keys) => element("span", {}, ...keys.slice(0, 12).flatMap((key) => [link(kind, key), " "]),
  keys.length > 12 ? `and ${keys.length - 12} more` : "");

function drawTable(name) {
  const body = byId(name).tBodies[0];
  const wanted = byId("filter").value.trim().toLowerCase();
  const rows = [...shown[name].values()].filter((one) => !wanted || JSON.stringify(one).toLowerCase().includes(wanted));
  const old = new Map([...body.rows].map((tr) => [tr.dataset.key, tr]));
  let at = body.firstElementChild;
  for (const one of rows.sort(ORDERS[name])) {
    const dated = "since_ms" in one ? ageOf(one) : "";
    let tr = old.get(one.key);
    old.delete(one.key);
    if (!tr || tr.source !== one || tr.dated !== dated) {
      const fresh = row(one.key, CELLS[name](one));
      fresh.source = one;
      fresh.dated = dated;
      if (tr) {
        if (at === tr) at = fresh;
        tr.replaceWith(fresh);
      }
      tr = fresh;
    }
    if (at === tr) at = tr.nextElementSibling;
    else body.insertBefore(tr, at);
  }
  for (const tr of old.values()) tr.remove();
}

// --- the page of one ticket or node --------------------------------------------------------------------------------

function place() {
  const [, kind, name] = location.hash.split("/");
  return { kind, name: decodeURIComponent(name ?? "") };
}

const naming = (rows, name) => [...rows.values()].filter((event) => event.text.split(/[\s;,:]/).includes(name));

// The page is drawn anew only when something on it is different: whoever is about to press a button must not lose it.
function drawPage() {
  const { kind, name } = place();
  const page = byId("page");
  const isPage = kind === "ticket" || kind === "node";
  page.hidden = !isPage;
  if (output && (kind !== "ticket" || output.ticket !== name || shown !== live)) {
    output.close();
    output.element.remove();
    output = null;
  }
  byId("overview").hidden = isPage;
  const one = kind === "node" ? shown.nodes.get(name) : shown.tickets.get(name) ?? shown.queue.get(name);
  const actors = [...shown.actors.values()].filter((actor) => (kind === "node" ? actor.node : actor.ticket) === name);
  const events = naming(shown.events, name);
  const drawn = JSON.stringify([location.hash, shown === live, token !== "", one, actors, events.map((event) => event.key)]);
  if (drawn === page.drawn) return;
  page.drawn = drawn;
  const why = page.querySelector("#why") ?? element("pre", { id: "why" });
  const parts = kind === "ticket" ? ticketPage(name, one, actors) : nodePage(name, one, actors);
  const lines = kind === "ticket" ? outputOf(name, one) : [];
  const kept = new Set(lines);
  for (const old of [...page.children]) if (!kept.has(old)) old.remove();
  const before = [element("h2", {}, kind === "ticket" ? mark(name) : "", ` ${kind} ${name}`), ...parts, why];
  const after = [element("h2", {}, "The newest events that name it"), eventsTable(events)];
  page.prepend(...before);
  if (lines.length && lines[0].parentNode !== page) page.append(...lines); // moved, it would lose its place
  page.append(...after);
}

function outputOf(name, one) {
  if (!about.logs || shown !== live) return [];
  output ??= new Output(name);
  output.setRanks(one?.actors ?? 0);
  return [output.element];
}

function ticketPage(name, one, actors) {
  const explain = element("button", { type: "button" }, "explain");
  explain.addEventListener("click", () => explainTicket(name));
  if (!one) return [element("p", {}, "It does not hold or wait for anything at this moment."), explain];
  return [
    facts({ state: one.state, since: date(one.since_ms), name: one.name, user: one.user, client: one.client,
      gang: `${one.gang} actors, each with ${one.needs}`, place: one.place || "", nodes: one.nodes.join(" "), reason: one.reason }),
    explain, ...actions("release", name),
    table(["rank", "node", "GPUs", "state", "actor", "pid", "end", "runs"], actors.sort((a, b) => a.rank - b.rank).map(
      (actor) => row(actor.key, [number(actor.rank), link("node", actor.node), actor.gpus, state(actor.state), actor.actor,
        String(actor.pid || ""), actor.end, actor.runs]))),
  ];
}

function nodePage(name, one, actors) {
  if (!one) return [element("p", {}, "There is no such node at this moment.")];
  return [
    facts({ state: one.state, remark: one.remark, host: one.host, CPUs: `${one.cpus_free} of ${one.cpus} free`,
      memory: `${size(one.memory_free)} of ${size(one.memory)} free` }),
    element("p", {}, cells(one.gpus), " ", links("ticket", one.tickets)), ...actions("drain", name), ...actions("uncordon", name),
    table(["actor", "ticket", "GPUs", "state", "pid", "end"], actors.map((actor) => row(actor.key, [
      actor.actor, link("ticket", actor.ticket), actor.gpus, state(actor.state), String(actor.pid || ""), actor.end]))),
  ];
}

function facts(values) {
  const rows = Object.entries(values).filter(([, value]) => value).map(([name, value]) => row(name, [
    element("span", { class: "dim" }, name), String(value)]));
  return element("table", {}, element("tbody", {}, ...rows));
}

function table(names, rows) {
  if (!rows.length) return element("p", { class: "dim" }, "no actor was launched");
  const head = element("tr", {}, ...names.map((name) => element("th", {}, name)));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
}

function eventsTable(events) {
  const rows = events.sort(ORDERS.events).map((event) => row(event.key, CELLS.events(event)));
  return element("table", {}, element("tbody", {}, ...rows));
}

async function explainTicket(name) {
  const why = byId("why");
  why.textContent = "reading the log …";
  const at = shown === live ? "" : `?at=${shown.head.now_ms}`;
  const told = await get(`/api/explain/${encodeURIComponent(name)}${at}`).catch((error) => ({ sentence: error.message }));
  const rows = (told.nodes ?? []).map((node) => `  ${node.node_id}: ${node.fits} of ${node.wanted} members fit` +
    (node.holders.length ? `; held by ${node.holders.map((held) => `${held.ticket_id} (${held.user})`).join(", ")}` : ""));
  why.textContent = [told.sentence, told.needs && `needs ${told.needs}`, ...rows, ...(told.left_out ?? [])].filter(Boolean).join("\n");
}

// --- actions: asked about, and with the token ----------------------------------------------------------------------

const QUESTIONS = {
  drain: (name) => `Drain node ${name}? Nothing new is placed there, and its tickets are told to go.`,
  uncordon: (name) => `Let node ${name} have new slots again?`,
  release: (name) => `Release ticket ${name}? Its actors are stopped, whoever owns them.`,
};

function actions(kind, name) {
  if (about.read_only || !token || shown !== live) return [];
  const button = element("button", { type: "button", class: kind }, kind);
  button.addEventListener("click", async () => {
    if ((await ask(QUESTIONS[kind](name))) === null) return;
    tell(`${kind} ${name} …`);
    await act(kind, name, token).then((answer) => tell(answer.done), (error) => tell(error.message));
  });
  return [" ", button];
}

function ask(question, secret = false) {
  const dialog = byId("ask"), input = byId("secret");
  byId("question").textContent = question;
  input.hidden = !secret;
  input.value = "";
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close",
    () => resolve(dialog.returnValue === "yes" ? input.value : null), { once: true }));
}

let toldTimer = 0;
function tell(text) {
  byId("told").textContent = text;
  clearTimeout(toldTimer);
  toldTimer = setTimeout(() => { byId("told").textContent = ""; }, 8000);
}

// --- time -----------------------------------------------------------------------------------------------------------

let looking = new AbortController();

async function goTo(ms) {
  looking.abort();
  looking = new AbortController();
  try {
    const board = emptyBoard();
    apply(board, await get(`/api/board?at=${Math.round(ms)}`, looking.signal));
    shown = board;
    draw();
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message);
  }
}

function goLive() {
  looking.abort();
  shown = live;
  byId("moment").value = 1000;
  draw();
}

async function readSpan() {
  span = await get("/api/span").catch(() => span);
}

let sliding = 0;
byId("moment").addEventListener("input", () => {
  const part = Number(byId("moment").value) / 1000;
  const ms = span.first_ms + part * (Math.max(span.last_ms, live.head.now_ms ?? 0) - span.first_ms);
  byId("when").textContent = date(ms);
  clearTimeout(sliding);
  sliding = setTimeout(() => (part >= 1 ? goLive() : goTo(ms)), 120);
});
byId("moment").addEventListener("pointerdown", readSpan);
byId("live").addEventListener("click", goLive);

// --- drawing --------------------------------------------------------------------------------------------------------

function draw() {
  const { head } = shown, past = shown !== live;
  document.body.classList.toggle("past", past);
  byId("live").setAttribute("aria-pressed", String(!past));
  byId("pool").textContent = head.pool ?? "";
  byId("when").textContent = head.now_ms ? date(head.now_ms) : "";
  byId("summary").textContent = `allocator ${head.allocator || "none"} · ${count(shown.nodes.size, "node")} · ` +
    `${head.gpus_free ?? 0} of ${head.gpus ?? 0} GPUs free · ${count(shown.tickets.size, "ticket")}, ` +
    `${shown.queue.size} waiting · ${count(head.clients ?? 0, "client")}` + (past ? "" : ` · ${(head.rate ?? 0).toFixed(1)} events/s`);
  byId("problem").textContent = live.head.problem ?? "";
  byId("problem").hidden = !live.head.problem;
  byId("unlock").hidden = about.read_only || token !== "";
  drawPage();
  if (!byId("overview").hidden) for (const name of ["nodes", "tickets", "queue", "events"]) drawTable(name);
}

byId("filter").addEventListener("input", draw);
byId("unlock").addEventListener("click", async () => {
  token = (await ask("The token, from the file that the dashboard was started with:", true)) ?? "";
  draw();
});
addEventListener("hashchange", () => {
  byId("why")?.remove();
  draw();
});

about = await get("/api/about").catch(() => about);
await readSpan();
stream((name, changes) => {
  if (name === "board") for (const section of SECTIONS) live[section].clear();
  apply(live, changes);
  if (shown === live) draw();
}, (problem) => {
  live.head = { ...live.head, problem };
  draw();
});
