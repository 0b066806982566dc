"use strict";

// What models write is only ever put into text nodes.
const at = (id) => document.getElementById(id);
const made = (tag, kind = "", text = "") => {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (text) element.textContent = text;
  return element;
};
const IDEAS = ["Once upon a time", "Explain quantization to a child.", "Write a haiku about memory."];
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const LIKELIEST = 3;

let models = [];
let turns = [];
let running = [];

// ---- Words ----------------------------------------------------------------------------------------------------

const size = (bytes) => {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (bytes < 1000) return unit === "B" ? `${bytes} B` : `${bytes.toFixed(1)} ${unit}`;
    bytes /= 1000;
  }
  return `${bytes.toFixed(1)} TB`;
};
const formatsOf = (model) => Object.keys(model.qformats.formats).filter((name) => name !== "plain numbers").join(", ");
const duration = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
// A token with what cannot be seen made visible, as on the page of a comparison.
const shown = (text) => text.replaceAll("\n", "⏎").replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
const modelOf = (name) => models.find((model) => model.id === name);
const say = (text) => { at("status").textContent = text; };

// ---- The server -----------------------------------------------------------------------------------------------

const headers = () => {
  const key = at("key").value.trim();
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
};

async function complaint(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answers with ${response.status}.`;
  }
}

async function fetched(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { headers: headers(), ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is it still running?");
  }
  if (!response.ok) {
    if (response.status === 401) { at("settings").open = true; at("key").focus(); }
    throw new Error(await complaint(response));
  }
  return response;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function loadModels() {
  models = (await (await fetched("/v1/models")).json()).data;
}

// ---- What is chosen -------------------------------------------------------------------------------------------

const comparing = () => at("compare").getAttribute("aria-pressed") === "true";
const chosen = () => (comparing() ? [at("first").value, at("second").value] : [at("first").value]);

function fill() {
  for (const [id, index] of [["first", 0], ["second", 1]]) {
    const before = at(id).value;
    at(id).replaceChildren(...models.map((model) => {
      const option = made("option", "", model.id);
      option.value = model.id;
      return option;
    }));
    at(id).value = modelOf(before) ? before : models[Math.min(index, models.length - 1)]?.id ?? "";
  }
  at("compare").hidden = models.length < 2;
  at("cards").replaceChildren(...models.map((model) => {
    const card = made("li");
    const about = model.qformats;
    const context = about.context ? `${about.context.toLocaleString("en")} tokens of context` : "";
    const does = about.chat ? "" : "continues text";
    const facts = [formatsOf(model), size(about.bytes), context, about.device, does].filter(Boolean);
    card.append(made("b", "", model.id), made("span", "", facts.join(" · ")));
    return card;
  }));
  const two = models.length > 1 ? " Compare two shows the same question to two models, and where their answers part." : "";
  at("lead").textContent = `Nothing leaves this machine.${two}`;
}

function arrange() {
  document.body.classList.toggle("two", comparing());
  at("beside").hidden = !comparing();
}

function begin() {
  stop();
  turns = [];
  at("turns").replaceChildren();
  at("empty").hidden = false;
  at("anew").disabled = true;
  say("");
  at("ask").focus();
}

// ---- Answers --------------------------------------------------------------------------------------------------

class Answer {
  constructor(name) {
    const model = modelOf(name);
    Object.assign(this, { name, text: "", tokens: [], done: false, cut: null });
    this.element = made("article", "answer working");
    const who = made("h2", "who", name);
    who.append(made("span", "", model ? `${formatsOf(model)}, ${size(model.qformats.bytes)}` : ""));
    this.body = made("div", "text");
    [this.same, this.fork, this.parted] = [made("span"), made("span", "fork"), made("span", "parted")];
    this.fork.hidden = true;
    this.body.append(this.same, this.fork, this.parted);
    this.numbers = made("p", "numbers");
    this.element.append(who, this.body, this.numbers);
  }

  show() {
    const cut = this.cut === null ? this.text.length : this.cut;
    // Many templates leave a space or an empty line in front of an answer.
    const start = Math.min(cut, this.text.length - this.text.trimStart().length);
    this.same.textContent = this.text.slice(start, cut);
    this.parted.textContent = this.text.slice(cut);
    this.fork.hidden = this.cut === null;
  }

  tell(pairs) {
    this.numbers.replaceChildren(...pairs.filter(Boolean).map(([number, unit]) => {
      const part = made("span");
      part.append(made("b", "", number), ` ${unit}`);
      return part;
    }));
  }

  fail(message, again) {
    const box = made("div", "failed");
    box.setAttribute("role", "alert");
    const button = made("button", "", "Try again");
    button.type = "button";
    button.addEventListener("click", again);
    box.append(made("p", "", message), button);
    this.numbers.replaceWith(box);
  }
}

function requestFor(turn, side, name) {
  const options = {};
  for (const id of NUMBERS) if (at(id).value !== "" && at(id).checkValidity()) options[id] = Number(at(id).value);
  const before = turns.slice(0, turns.indexOf(turn)).filter((each) => each.answers[side] && !each.answers[side].failed);
  const common = { model: name, stream: true, ...options };
  if (modelOf(name).qformats.chat) {
    const system = at("system").value.trim();
    const messages = system ? [{ role: "system", content: system }] : [];
    for (const each of before) {
      messages.push({ role: "user", content: each.question });
      messages.push({ role: "assistant", content: each.answers[side].text });
    }
    messages.push({ role: "user", content: turn.question });
    return ["/v1/chat/completions", { ...common, messages, logprobs: true, top_logprobs: LIKELIEST }];
  }
  const prompt = before.map((each) => each.question + each.answers[side].text).join("") + turn.question;
  return ["/v1/completions", { ...common, prompt, logprobs: LIKELIEST }];
}

const tokensOf = (choice) => {
  const found = choice.logprobs;
  if (!found) return [];
  if (found.content) return found.content.map((t) => ({ text: t.token, logprob: t.logprob }));
  return found.tokens.map((text, index) => ({ text, logprob: found.token_logprobs[index] }));
};

async function write(turn, side) {
  const answer = turn.answers[side];
  const control = new AbortController();
  running.push(control);
  const began = performance.now();
  let first = 0;
  let timings = null;
  try {
    const [path, body] = requestFor(turn, side, answer.name);
    const response = await fetched(path, { method: "POST", body: JSON.stringify(body), signal: control.signal });
    for await (const event of events(response)) {
      timings = event.timings ?? timings;
      for (const choice of event.choices) {
        const text = choice.delta ? choice.delta.content ?? "" : choice.text;
        answer.text += text;
        answer.tokens.push(...tokensOf(choice));
        if (text && !first) first = performance.now();
      }
      part(turn);
      follow(() => answer.show());
      const seconds = (performance.now() - first) / 1000;
      if (first && answer.tokens.length > 1) {
        answer.tell([[(answer.tokens.length / Math.max(seconds, 0.001)).toFixed(1), "tokens/s"], [answer.tokens.length, "tokens"]]);
      }
    }
  } catch (error) {
    if (error.name === "AbortError") {
      answer.stopped = true;
    } else {
      answer.failed = true;
      follow(() => answer.fail(error.message, () => again(turn, side)));
      say(error.message);
    }
  } finally {
    running = running.filter((each) => each !== control);
    answer.done = true;
    answer.element.classList.remove("working");
  }
  if (answer.failed) return;
  part(turn);
  answer.show();
  try {
    await loadModels();
  } catch { /* The answer is there; only its memory is not told. */ }
  const speed = timings && timings.predicted_per_second;
  const memory = modelOf(answer.name)?.qformats;
  follow(() => answer.tell([
    speed && [speed.toFixed(1), "tokens/s"],
    [timings ? timings.predicted_n : answer.tokens.length, "tokens"],
    first && [duration(first - began), "to the first"],
    memory && [size(memory.bytes), "weights"],
    memory && [size(memory.cache_bytes), "cache"],
    answer.stopped && ["Stopped", "by you"],
  ]));
}

// The first token that differs. Tokens of one text, so that answers of models with other vocabularies compare too.
function part(turn) {
  if (turn.answers.length < 2 || turn.parted || turn.answers.some((each) => each.failed)) return;
  const [one, other] = turn.answers;
  const count = Math.min(one.tokens.length, other.tokens.length);
  let index = turn.compared ?? 0;
  while (index < count && one.tokens[index].text === other.tokens[index].text) index += 1;
  turn.compared = index;
  const ended = turn.answers.some((each) => each.done && !each.stopped && each.tokens.length === index);
  const longer = Math.max(one.tokens.length, other.tokens.length) > index;
  if (index < count || (ended && longer)) {
    turn.parted = true;
    for (const each of turn.answers) {
      each.cut = Math.min(each.text.length, each.tokens.slice(0, index).reduce((sum, token) => sum + token.text.length, 0));
      each.show();
    }
  }
  if (turn.parted || turn.answers.every((each) => each.done)) judge(turn, index);
}

function judge(turn, index) {
  const [one, other] = turn.answers;
  const line = made("p", turn.parted ? "verdict" : "verdict same");
  const chance = (token) => (token ? ` (${Math.round(100 * Math.exp(token.logprob))} %)` : "");
  const quoted = (token) => (token ? made("q", "", shown(token.text)) : made("i", "", "nothing more"));
  if (turn.parted) {
    const [a, b] = [one.tokens[index], other.tokens[index]];
    line.append(index ? `The same for ${index} token${index === 1 ? "" : "s"}, then ` : "They part at once: ");
    line.append(quoted(a), `${chance(a)} beside `, quoted(b), `${chance(b)}.`);
  } else {
    line.append(`The same, all ${index} token${index === 1 ? "" : "s"}.`);
  }
  turn.verdict.replaceChildren(line);
}

// ---- Turns ----------------------------------------------------------------------------------------------------

// The end stays in view, unless the reader has scrolled away from it.
function follow(change) {
  const main = at("main");
  const near = main.scrollHeight - main.scrollTop - main.clientHeight < 80;
  change();
  if (near) main.scrollTop = main.scrollHeight;
}

function busy(value) {
  at("send").hidden = value;
  at("stop").hidden = !value;
  for (const id of ["first", "second", "compare"]) at(id).disabled = value;
}

async function ask(question) {
  if (running.length || !question.trim() || !models.length) return;
  const turn = { question, answers: chosen().map((name) => new Answer(name)), verdict: made("div") };
  turns.push(turn);
  const element = made("li", "turn");
  const answers = made("div", "answers");
  answers.append(...turn.answers.map((answer) => answer.element));
  element.append(made("p", "question", question), answers, turn.verdict);
  at("empty").hidden = true;
  at("anew").disabled = false;
  at("turns").append(element);
  at("main").scrollTop = at("main").scrollHeight;
  await answered(turn, turn.answers.map((_, side) => side));
}

async function answered(turn, sides) {
  busy(true);
  say("Answering");
  await Promise.all(sides.map((side) => write(turn, side)));
  busy(false);
  if (!turn.answers.some((answer) => answer.failed)) say("The answer is complete");
  at("ask").focus();
}

function again(turn, side) {
  if (running.length) return;
  const fresh = new Answer(turn.answers[side].name);
  turn.answers[side].element.replaceWith(fresh.element);
  turn.answers[side] = fresh;
  Object.assign(turn, { parted: false, compared: 0 });
  turn.verdict.replaceChildren();
  for (const each of turn.answers) { each.cut = null; each.show(); }
  answered(turn, [side]);
}

function stop() {
  for (const control of running) control.abort();
}

// ---- The page -------------------------------------------------------------------------------------------------

function grow() {
  const box = at("ask");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
  at("send").disabled = !box.value.trim();
}

function dark() {
  return document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
}
const nameTheme = () => { at("scheme").textContent = dark() ? "Light" : "Dark"; };

async function start() {
  at("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    nameTheme();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
  nameTheme();
  at("compare").addEventListener("click", () => {
    at("compare").setAttribute("aria-pressed", String(!comparing()));
    arrange();
    // Each side has a history of its own.
    begin();
  });
  for (const id of ["first", "second"]) at(id).addEventListener("change", begin);
  at("anew").addEventListener("click", begin);
  at("stop").addEventListener("click", stop);
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running.length) return;
    const question = at("ask").value;
    at("ask").value = "";
    grow();
    ask(question);
  });
  at("ask").addEventListener("input", grow);
  at("ask").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (at("ask").value.trim()) at("form").requestSubmit();
    }
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
  at("ideas").append(...IDEAS.map((text) => {
    const button = made("button", "", text);
    button.type = "button";
    button.addEventListener("click", () => ask(text));
    return button;
  }));
  at("key").addEventListener("change", open);
  grow();
  await open();
}

async function open() {
  try {
    await loadModels();
    fill();
    say("");
  } catch (error) {
    at("lead").textContent = error.message;
    say(error.message);
  }
}

start();
