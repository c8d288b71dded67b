// What the page asks of its server.

export async function get(path, signal) {
  return answer(await fetch(path, { signal }));
}

export async function act(kind, name, token) {
  return answer(await fetch(`/api/${kind}/${encodeURIComponent(name)}`, {
    method: "POST", headers: { authorization: `Bearer ${token}` } }));
}

async function answer(response) {
  const found = await response.json();
  if (!response.ok) throw new Error(found.error ?? response.statusText);
  return found;
}

// The board, then what changes; the browser connects again by itself when the server was away, and gets a whole board.
export function stream(onChanges, onProblem) {
  const source = new EventSource("/api/stream");
  for (const name of ["board", "change"]) {
    source.addEventListener(name, (event) => onChanges(name, JSON.parse(event.data)));
  }
  source.addEventListener("error", () => onProblem(source.readyState === EventSource.CLOSED
    ? "the dashboard's server takes no more watchers: reload this page later"
    : "the dashboard's server cannot be reached; trying again"));
}
