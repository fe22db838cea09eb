// Talks to the server of this page; builds elements whose words are only ever text.

export class Problem extends Error {
  constructor(words, status) { super(words); this.status = status; }
}

async function answered(response) {
  if (response.ok) return response;
  let words = `the server answered ${response.status}`;
  try { words = (await response.json()).problem || words; } catch { /* not JSON: the number is all there is */ }
  throw new Problem(words, response.status);
}

export async function get(path) {
  return (await answered(await fetch(path))).json();
}

export async function bytes(path) {
  return (await answered(await fetch(path))).arrayBuffer();
}

export async function send(path, value = {}, method = "POST") {
  const response = await fetch(path, { method, headers: { "content-type": "application/json" }, body: JSON.stringify(value) });
  return (await answered(response)).json();
}

export const coded = (file) => new Promise((resolve, reject) => { // the bytes of a file that is not text
  const reader = new FileReader();
  reader.onload = () => resolve({ base64: reader.result.slice(reader.result.indexOf(",") + 1) });
  reader.onerror = () => reject(new Problem(`${file.name} could not be read`));
  reader.readAsDataURL(file);
});

export function listen(handlers) {
  const source = new EventSource("/api/events");
  for (const [word, handle] of Object.entries(handlers)) {
    if (word === "lost" || word === "back") continue;
    source.addEventListener(word, (event) => handle(JSON.parse(event.data)));
  }
  let lost = false;
  source.onerror = () => { lost = true; handlers.lost(); };
  source.onopen = () => { if (lost) { lost = false; handlers.back(); } };
  addEventListener("pagehide", () => source.close());
}

export const $ = (id) => document.getElementById(id);

export function made(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.map((child) => (child instanceof Node ? child : document.createTextNode(String(child)))));
  return element;
}

export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(size >= 1000 ? 5 : 3)));
}

export const soon = (wait, work) => {
  let timer = 0;
  return (...values) => { clearTimeout(timer); timer = setTimeout(() => work(...values), wait); };
};
