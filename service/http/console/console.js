// The console of one replica. All text is set through textContent and append, so that none of it can become markup.

import { canonical, markField, markFinding } from "./citations.js";

const $ = (id) => document.getElementById(id);
const MODE = "admin/explanation-mode";
const POLL_MS = 1000;

let key = "";
let etag = null; // the ETag of the mode on the page
let editing = null; // the ETag of the mode that was on the page when the user started to fill in the form
let shown = null; // the mode on the page, and when it was read
let historyOf = null; // the revision up to which the history is on the page

async function call(path, options = {}) {
  const headers = { ...(options.headers ?? {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (response.ok || options.anyStatus) return response;
  const problem = await response.json().catch(() => ({}));
  // With a single bad field, the detail may repeat its message.
  const errors = (problem.errors ?? []).filter((bad) => bad.message !== problem.detail);
  const fields = errors.map((bad) => `${bad.field}: ${bad.message}`).join("; ");
  const error = new Error([problem.detail ?? `HTTP ${response.status}`, fields].filter(Boolean).join(" — "));
  error.status = response.status;
  throw error;
}

function setText(element, text, failed = false) {
  // Set only when it changes: a screen reader reads the text aloud each time it is set.
  if (element.textContent !== text) element.textContent = text;
  element.classList.toggle("bad", failed);
}

function inWords(error) {
  if (error.status === 401 && !key) return "This service needs a key: enter an admin key at the top of this page.";
  return error.status ? error.message : `The service does not answer: ${error.message}`;
}

// --- the mode

// Why there is no explanation: outcomes, and reasons of those that were dropped.
const REASONS = {
  failed: "it failed, and the log says why",
  queue_full: "too many are waiting; try again later",
  waited_too_long: "it took too long, because scoring goes first; try again later",
  mode_off: "explanation mode went off",
  scoring_busy: "scoring is slow and goes first; try again later",
  stopping: "the service is stopping",
};
const percent = (share) => `${Number((100 * share).toPrecision(4))}%`;
const NAMES = { off: "off", on_request: "on request", sample: "sample", all: "all" };
const time = (seconds) => new Date(seconds * 1000).toLocaleString([], { dateStyle: "short", timeStyle: "short" });

function leftNow() {
  if (!shown || shown.mode.left_s === null) return null;
  return Math.max(0, shown.mode.left_s - (performance.now() - shown.at) / 1000);
}

function showMode() {
  if (!shown) return;
  const { mode } = shown;
  const left = leftNow();
  const name = left === 0 ? "off" : mode.mode;
  setText($("mode"), NAMES[name] + (name === "sample" ? ` ${percent(mode.last.rate)}` : ""));
  $("mode").classList.toggle("is-on", name !== "off");
  $("needs-mode").hidden = name !== "off";
  const expired = name === "off" && mode.last.mode !== "off";
  $("countdown").textContent = expired ? "expired" : left === null ? "" : `${countdown(left)} left`;
  const last = mode.last;
  setText($("last-flip"), last.revision ? `${NAMES[last.mode]} since ${time(last.since)}, by ${last.owner}: ${last.reason}` : "Nobody has changed the mode yet.");
  $("unread").hidden = mode.unread_s === null;
  if (mode.unread_s !== null) setText($("unread"), "Redis does not answer this replica. The last known mode applies until it expires.");
}

function countdown(seconds) {
  const whole = Math.ceil(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return parts.map((part) => String(part).padStart(2, "0")).join(":");
}

async function readMode() {
  const response = await call(MODE);
  shown = { mode: await response.json(), at: performance.now() };
  etag = response.headers.get("etag");
  showMode();
  if (historyOf !== shown.mode.last.revision) await readHistory();
}

async function readHistory() {
  const { flips } = await (await call(`${MODE}/history`)).json();
  fill($("history"), flips.map((flip) => [
    time(flip.since),
    NAMES[flip.mode] + (flip.rate === null ? "" : ` ${percent(flip.rate)}`),
    flip.expires === null ? "" : countdown(flip.expires - flip.since),
    flip.owner,
    flip.reason,
  ]));
  historyOf = shown.mode.last.revision;
}

function fill(table, rows) {
  table.tBodies[0].replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    for (const cell of cells) row.insertCell().append(...[cell].flat());
    return row;
  }));
}

function chosenMode() {
  return new FormData($("flip-form")).get("mode");
}

$("flip-form").addEventListener("change", () => {
  // Disabled as well: the browser silently refuses a form with a hidden field that is not valid.
  $("ttl-field").hidden = $("ttl").disabled = chosenMode() === "off";
  $("rate-field").hidden = $("rate").disabled = chosenMode() !== "sample";
});

// A flip applies to the mode that was on the page when the user started to fill in the form.
$("flip-form").addEventListener("focusin", () => { editing ??= etag; });

$("flip-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const mode = chosenMode();
  const change = { mode, reason: $("reason").value };
  if (mode !== "off") change.ttl_s = Number($("ttl").value) * 60;
  if (mode === "sample") change.rate = Number($("rate").value) / 100;
  try {
    await call(MODE, { method: "PUT", headers: { "If-Match": editing ?? etag ?? "" }, body: JSON.stringify(change) });
    setText($("flip-result"), `The mode is now ${NAMES[mode]}.`);
    $("reason").value = "";
  } catch (error) {
    setText($("flip-result"), `Not changed: ${inWords(error)}`, true);
  }
  editing = null;
  await poll();
});

// --- figures

const PLOTS = [
  ["Half / 99\u00a0% answered within", "ms", (s) => s.p50_ms, (s) => s.p99_ms],
  ["Notes scored", "per second", (s) => s.pairs_per_s],
  ["Scored from a cache", "%", (s) => (s.hit_rate === null ? null : s.hit_rate * 100)],
  ["Refused, too much load", "%", (s) => (s.shed_rate === null ? null : s.shed_rate * 100)],
];

async function readFigures() {
  const { minute, seconds } = await (await call("admin/figures")).json();
  $("plots").replaceChildren(...PLOTS.map((plot) => draw(plot, minute, seconds)));
}

function draw([name, unit, first, second], minute, seconds) {
  const series = [first, second].filter(Boolean);
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  const value = document.createElement("strong");
  value.textContent = `${series.map((read) => number(read(minute))).join(" / ")} ${unit}`;
  caption.append(name, value);
  const svg = svgElement("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img" });
  svg.setAttribute("aria-label", `${name} in each second of the last minute; over the whole minute ${value.textContent}`);
  const top = Math.max(1, ...seconds.flatMap((second_) => series.map((read) => read(second_) ?? 0)));
  series.forEach((read, i) => {
    const points = seconds.map((s, at) => [(at / (seconds.length - 1)) * 100, 97 - ((read(s) ?? 0) / top) * 94]);
    svg.append(svgElement("polyline", { points: points.join(" "), class: i ? "second" : "first" }));
  });
  figure.append(caption, svg);
  return figure;
}

const number = (value) => (value === null ? "–" : value < 10 ? value.toFixed(1) : Math.round(value).toString());

function svgElement(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
  return element;
}

// --- trying a pair

// Read once: the criteria of a served checkpoint do not change.
async function readCriteria() {
  if ($("criteria").length > 0) return;
  const { model } = await (await call("version")).json();
  $("criteria").replaceChildren(...model.criteria.map((name) => new Option(name)));
}

let pair = null; // that was scored last
let score = null; // of that pair, once it came

$("try-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.submitter ?? $("try-form").querySelector("button");
  button.disabled = true;
  $("raw").hidden = $("steps").hidden = $("cited").hidden = true;
  for (const id of ["trace", "worth"]) setText($(id), "");
  for (const id of ["score-notes", "checks"]) $(id).replaceChildren();
  setText($("try-result"), "Scoring\u2026");
  score = null;
  let last = null;
  try {
    const note = { title: $("title").value || null, body: $("body").value };
    pair = { query: $("query").value, note, criteria: $("criteria").value || null };
    const response = await call("explain", { method: "POST", body: JSON.stringify(pair) });
    for await (const [name, data] of events(response.body)) {
      ON_EVENT[name]?.(data);
      last = name;
    }
    if (last !== "explanation") throw new Error("the answer has no end");
  } catch (error) {
    const isOff = error.status === 409;
    if (isOff) $("needs-mode").hidden = false;
    // A score that came stays, though its explanation broke off.
    if (score) setText($("worth"), `No explanation: the answer broke off (${error.message}).`, true);
    else setText($("try-result"), isOff ? "Not scored." : inWords(error), true);
  }
  button.disabled = false;
});

const ON_EVENT = {
  score(data) {
    score = data;
    setText($("try-result"), `Grade ${data.grade}, score ${data.score.toFixed(3)} (criteria ${data.criteria})`);
    list($("score-notes"), describeScore(data));
    setText($("worth"), "The model is writing its explanation\u2026");
    $("raw").hidden = false;
    $("raw").open = true;
  },
  text(data) {
    $("trace").textContent = ($("trace").textContent + data).trimStart();
  },
  explanation(data) {
    const { outcome, reason, well_formed, grounded, steps, text } = data;
    if (outcome !== "made") {
      setText($("worth"), `No explanation: ${REASONS[reason] ?? REASONS[outcome] ?? reason}.`, true);
      return;
    }
    $("trace").textContent = text;
    $("raw").open = !well_formed;
    const checks = check(data);
    const isGood = checks.every(([mark]) => mark === "good");
    const isBad = checks.some(([mark]) => mark === "bad");
    const worst = grounded === false ? "This explanation is not true. Do not rely on it." : "Do not rely on this explanation.";
    setText($("worth"), isBad ? worst : isGood ? "The explanation passes all checks. It is a hint, no proof." : "Read this explanation with care.", isBad);
    list($("checks"), checks);
    showCited(steps.flatMap((step) => step.citations));
    fill($("steps").querySelector("table"), steps.map((step) => [STEPS[step.criterion] ?? step.criterion, markFinding(step.finding, step.citations), step.grade]));
    $("steps").hidden = !well_formed;
  },
};

// The steps of packaged criteria; other criteria name their own.
const STEPS = { asked: "What the query asks for", for: "For the note", against: "Against the note" };

function showCited(citations) {
  const texts = { query: pair.query, title: pair.note.title ?? "", body: pair.note.body };
  for (const [field, text] of Object.entries(texts)) $(`cited-${field}`).replaceChildren(...markField(field, canonical(text), citations));
  $("cited").hidden = citations.length === 0;
}

// What a person must know to read the score.
function describeScore({ grade, distribution, label_mass, truncated }) {
  const rounded = (share) => `${Math.round(share * 100)}\u00a0%`;
  const shares = distribution.map((share, value) => `${rounded(share)} for grade ${value}`).join(", ");
  const notes = [
    ["plain", `Grades go from 0 (worst) to ${distribution.length - 1}, scores from 0 to 1. Notes are ranked by score.`],
    ["plain", `How sure is the model? ${shares}.`],
  ];
  if (distribution[grade] < Math.max(...distribution)) notes.push(["plain", "The grade is not the most probable one: a rule fitted to graded examples chose it."]);
  if (label_mass < 0.9) notes.push(["bad", `Do not trust the score: the model wants to answer with a grade only with ${rounded(label_mass)} probability.`]);
  if (truncated) notes.push(["bad", "The note is too long: the model has not read its end."]);
  return notes;
}

// The step at which the grade falls though it quotes nothing, with the grade before it.
function unexplainedFall(steps) {
  const before = [score.distribution.length - 1, ...steps.map((step) => step.grade)];
  const at = steps.findIndex((step, index) => step.citations.length === 0 && step.grade < before[index]);
  return at < 0 ? null : { from: before[at], to: steps[at].grade };
}

// What the explanation is worth: is it complete, is it true, does it lead to the grade, does it say why?
function check({ well_formed, grounded, agrees, steps, text_grade }) {
  if (!well_formed) return [["bad", "Not well-formed: the model wrote something other than the steps that it was taught."]];
  const quotes = steps.flatMap((step) => step.citations);
  const wrong = quotes.filter((quote) => !quote.found).length;
  const last = steps.at(-1).grade;
  const fall = unexplainedFall(steps);
  return [
    ["good", "Well-formed: it has all its steps."],
    grounded === null ? ["unsure", "It quotes nothing, so it can't be checked."]
      : grounded ? ["good", "True: every quoted text is where it says, and the note lacks what it calls missing."]
        : ["bad", `Not true: ${wrong} of its ${quotes.length} quotes ${wrong === 1 ? "is" : "are"} wrong, and struck out below.`],
    agrees ? ["good", `Agrees: it ends on grade ${last}, the grade above.`]
      : ["bad", `Disagrees: it ends on grade ${last}, not on ${score.grade}. The grade above counts.`],
    ...(fall && grounded !== null ? [["unsure", `Incomplete: the grade falls from ${fall.from} to ${fall.to} at a step that quotes nothing.`]] : []),
    ...(text_grade === null || text_grade === score.grade ? []
      : [["bad", `Its text has grade ${text_grade}: the grade above was read from the note's stored vectors.`]]),
  ];
}

function list(element, items) {
  element.replaceChildren(...items.map(([mark, text]) => {
    const item = document.createElement("li");
    item.className = mark;
    item.textContent = text;
    return item;
  }));
}

async function* events(stream) {
  let rest = "";
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    const blocks = (rest + read.value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s)));
      yield [fields.event, JSON.parse(fields.data)];
    }
  }
}

// --- polling

async function readReadiness() {
  const { reason, detail } = await (await call("readyz", { anyStatus: true })).json();
  setText($("readiness"), reason === "ok" ? "ready" : `not ready (${reason}): ${detail}`, reason !== "ok");
}

async function poll() {
  const problems = [];
  for (const read of [readReadiness, readMode, readFigures, readCriteria]) {
    try {
      await read();
    } catch (error) {
      problems.push(inWords(error));
    }
  }
  $("problem").hidden = problems.length === 0;
  setText($("problem"), [...new Set(problems)].join(" "));
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  poll();
});

async function keepPolling() {
  await poll();
  setTimeout(keepPolling, POLL_MS);
}

setInterval(showMode, 250);
keepPolling();
