/* Samples: filtered, paged, and drawn when they are opened. Texts reach the page as text only. */
const PAGE = 20;
const facts = island("facts");
const pieces = new Map();
const controls = Object.fromEntries(
  ["benchmark", "category", "target", "defence", "verdict", "outcome", "text"].map((id) => [
    id, document.getElementById(id),
  ]),
);
const all = document.getElementById("all");
let allOpen = false;
let found = [];
let first = 0;

function island(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

/* Item `number` of the islands of that name; an island is parsed when it is first needed. */
function item(name, number) {
  const id = `${name}-${Math.floor(number / facts.piece)}`;
  if (!pieces.has(id)) pieces.set(id, island(id));
  return pieces.get(id)[number % facts.piece];
}

function el(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function paragraph(text) {
  const made = el("p", "", text);
  made.dir = "auto";
  return made;
}

/* ---- Filters ---- */

function wanted() {
  const value = (id) => controls[id]?.value ?? "";
  return {
    benchmark: value("benchmark"), category: value("category"), target: value("target"),
    defence: value("defence"), verdict: value("verdict"), outcome: value("outcome"),
    text: value("text").trim().toLowerCase(),
  };
}

function answersOf(sample, want) {
  return sample.answers.filter((answer) =>
    (!want.target || answer.target === want.target) &&
    (!want.defence || answer.defence === want.defence));
}

function hasText(sample, answers, text) {
  const holds = (words) => (words ?? "").toLowerCase().includes(text);
  return holds(sample.id) || holds(sample.prompt) || holds(sample.goal) ||
    holds(sample.description) || answers.some((answer) =>
      holds(answer.text) || holds(answer.error) || answer.reasons.some(holds) ||
      (answer.rewrite ?? []).some((piece) => piece[0] !== "removed" && holds(piece[1])) ||
      answer.judged.some((said) => holds(said.explanation)));
}

function matches(sample, want) {
  if (want.benchmark && sample.benchmark !== want.benchmark) return false;
  if (want.category && sample.category !== want.category) return false;
  const answers = answersOf(sample, want);
  if ((want.target || want.defence) && answers.length === 0) return false;
  if ((want.verdict || want.outcome) && !answers.some((answer) =>
    (!want.verdict || answer.verdict === want.verdict) &&
    (!want.outcome || answer.outcomes.includes(want.outcome)))) return false;
  return !want.text || hasText(sample, answers, want.text);
}

function filter() {
  const want = wanted();
  found = [];
  const some = Object.values(want).some((value) => value !== "");
  for (let number = 0; number < facts.count; number += 1) {
    if (!some || matches(item("samples", number), want)) found.push(number);
  }
  first = 0;
  draw();
}

function draw() {
  const want = wanted();
  const shown = found.slice(first, first + PAGE);
  document.getElementById("list").replaceChildren(...shown.map((number) => row(number, want)));
  const [many, total] = [found.length, facts.count].map((count) => count.toLocaleString("en"));
  document.getElementById("count").textContent =
    found.length === facts.count ? `${total} samples` : `${many} of ${total} samples`;
  document.getElementById("place").textContent = found.length === 0 ? "none"
    : `${first + 1}–${first + shown.length} of ${many}`;
  document.getElementById("previous").disabled = first === 0;
  document.getElementById("next").disabled = first + PAGE >= found.length;
}

/* ---- One sample ---- */

function row(number, want) {
  const sample = item("samples", number);
  const place = sample.subset ? `${sample.benchmark} (${sample.subset})` : sample.benchmark;
  const harmful = sample.kind === "harmful";
  const excerpt = el("span", harmful ? "excerpt blurred" : "excerpt",
    sample.prompt.slice(0, 200) || "(no text)");
  if (harmful) excerpt.ariaHidden = "true";
  excerpt.dir = "auto";
  const summary = el("summary", "", el("span", "name", `${place} ${sample.id}`),
    el("span", harmful ? "tag risky" : "tag", sample.kind),
    sample.category ? el("span", "tag", sample.category) : null, excerpt);
  const made = el("details", "sample", summary);
  made.addEventListener("toggle", () => {
    if (made.open && made.childElementCount === 1) made.append(body(sample, want));
  });
  return made;
}

function body(sample, want) {
  const harmful = sample.kind === "harmful";
  const part = (title) => el("h4", "part", title);
  const made = el("div", "body");
  if (harmful) made.append(lifter(made));
  if (sample.pictures.length) {
    made.append(part("Pictures"), veil(pictures(sample.pictures), "pictures", harmful));
  }
  if (sample.description) {
    made.append(part("Description in place of a picture"),
      veil([paragraph(sample.description)], "description", harmful));
  }
  made.append(part("Prompt"), veil([paragraph(sample.prompt || "(none)")], "prompt", harmful));
  if (sample.goal) {
    made.append(part("What the attacker wants"), veil([paragraph(sample.goal)], "goal", harmful));
  }
  for (const [name, text] of sample.reference) {
    made.append(part(`For judges: ${name.replaceAll("_", " ")}`),
      veil([paragraph(text)], "reference", harmful));
  }
  const answers = answersOf(sample, want);
  made.append(part("Answers"));
  if (answers.length === 0) made.append(paragraph("There are none."));
  const several = new Set(answers.map((answer) => answer.target)).size > 1;
  const repeated = answers.some((answer) => answer.repeat > 0);
  made.append(el("div", "answers",
    ...answers.map((answer) => answerCard(answer, harmful, several, repeated))));
  return made;
}

function pictures(numbers) {
  const shown = numbers.map((number, place) => {
    if (typeof number === "string") return el("p", "missing", number);
    const image = el("img");
    image.src = item("pictures", number);
    image.alt = `Picture ${place + 1} of the sample`;
    image.loading = "lazy";
    return image;
  });
  return [el("div", "pictures", ...shown)];
}

function answerCard(answer, harmful, several, repeated) {
  const which = repeated ? ` (answer ${answer.repeat + 1})` : "";
  const made = el("section", "answer",
    el("h4", "", `${answer.defence}${several ? ` · ${answer.target}` : ""}${which}`));
  made.ariaLabel = `Answer behind ${answer.defence}${which}`;
  made.append(el("div", "tags", ...tags(answer)));
  if (answer.reasons.length) {
    made.append(el("h5", "", "Reasoning"), veil(answer.reasons.map(paragraph), "reasoning", harmful));
  }
  if (answer.rewrite) {
    const text = paragraph("");
    for (const [kind, words] of answer.rewrite) {
      text.append(kind === "same" ? words : el(kind === "added" ? "ins" : "del", "", words));
    }
    made.append(el("h5", "", "Rewrite"), veil([text], "rewrite", harmful));
  }
  made.append(el("h5", "", "Answer"), answerText(answer, harmful));
  for (const said of answer.judged) made.append(...judgement(said, harmful));
  made.append(el("p", "small", `${Math.round(answer.latency_ms ?? 0).toLocaleString("en")} ms, ` +
    `of it ${Math.round(answer.defence_ms ?? 0).toLocaleString("en")} added; ` +
    `${answer.calls} more ${answer.calls === 1 ? "call" : "calls"}`));
  return made;
}

function answerText(answer, harmful) {
  if (answer.error !== null) return el("p", "missing", `failed: ${answer.error}`);
  if (!answer.text.trim()) return el("p", "missing", "(empty)");
  const scroll = el("div", "scroll", paragraph(answer.text));
  scroll.tabIndex = 0;
  scroll.role = "region";
  scroll.ariaLabel = `Text of the answer behind ${answer.defence}`;
  return veil([scroll], "answer", harmful);
}

function tags(answer) {
  const made = [];
  if (answer.verdict) {
    const risk = answer.risk === null ? "" : `, risk ${answer.risk.toFixed(2)}`;
    made.push(el("span", `tag ${answer.verdict === "risky" ? "risky" : "safe"}`,
      `guard: ${answer.verdict}${risk}`));
  }
  for (const words of [answer.category, answer.action]) {
    if (words) made.push(el("span", "tag", words));
  }
  const bad = new Set(["failed", "empty", "unscored", "safe: no"]);
  for (const { text, by, told } of answer.chips) {
    const look = bad.has(text) ? "tag bad" : text === "safe: yes" ? "tag safe" : "tag";
    const chip = el("span", look, text, by ? el("span", "by", ` · ${by}`) : null);
    if (told) chip.title = told;
    made.push(chip);
  }
  return made;
}

function judgement(said, harmful) {
  const figures = said.metrics.map(([name, value]) =>
    `${name.replaceAll("_", " ")} ${value === null ? "–" : Number(value.toFixed(3))}`);
  const told = said.unscored === null ? figures.join(", ") : `unscored: ${said.unscored}`;
  const made = [el("h5", "", `Judged by ${said.judge}`), paragraph(told || "nothing")];
  for (const [score, judge, value] of said.votes) {
    made.push(el("p", "small", `${judge}: ${score.replaceAll("_", " ")} ${value}`));
  }
  if (said.explanation) made.push(veil([paragraph(said.explanation)], "judge's words", harmful));
  return made;
}

/* The content, blurred where asked; `what` names it to those who cannot see the blur. */
function veil(content, what, veiled) {
  const inner = el("div", "content", ...content);
  if (!veiled) return inner;
  const lift = el("button", "lift", el("span", "", "show"));
  lift.type = "button";
  lift.ariaLabel = `Show harmful ${what}`;
  const made = el("div", "veiled", inner, lift);
  closeVeil(made);
  if (allOpen) setVeil(made, true);
  return made;
}

/* A button that shows all of one sample. */
function lifter(body) {
  const made = el("button", "whole", "Show all of this sample");
  made.type = "button";
  made.addEventListener("click", () => {
    body.querySelectorAll(".veiled").forEach((each) => setVeil(each, true));
  });
  return made;
}

/* ---- Wiring ---- */

function turn(pages) {
  first = Math.max(0, first + pages * PAGE);
  draw();
  document.getElementById("samples").scrollIntoView();
}

let waiting = 0;
for (const control of Object.values(controls)) {
  control?.addEventListener(control.id === "text" ? "input" : "change", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, control.id === "text" ? 200 : 0);
  });
}
const form = document.getElementById("filters");
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter, 0));
document.getElementById("previous").addEventListener("click", () => turn(-1));
document.getElementById("next").addEventListener("click", () => turn(1));
all.hidden = false;
all.addEventListener("click", () => {
  allOpen = !allOpen;
  document.body.classList.toggle("harmful-shown", allOpen);
  document.querySelectorAll(".veiled").forEach((each) => setVeil(each, allOpen));
  for (const excerpt of document.querySelectorAll(".excerpt.blurred")) {
    excerpt.ariaHidden = allOpen ? null : "true";
  }
  all.textContent = allOpen ? "Hide harmful text" : "Show harmful text";
  all.setAttribute("aria-pressed", String(allOpen));
});
filter();
