/* Chat over the endpoint's OpenAI route: sends, shows frames as they arrive, and measures. Text of the model is only ever text. */
"use strict";

const $ = (id) => document.getElementById(id);
const about = { endpoint: "", model: "", key: false };
const messages = [];
let running = null; // the AbortController of the answer that is being received
let stopped = false; // whether it was the Stop button that ended it

// ---- the endpoint

const base = () => `/v2/${encodeURIComponent(about.endpoint)}`;
const headers = () => ({ "Content-Type": "application/json", ...($("key").value && { Authorization: `Bearer ${$("key").value}` }) });

async function learn() {
  Object.assign(about, await (await fetch("/about.json")).json());
  $("model").textContent = about.model;
  document.title = `Chat with ${about.model}`;
  $("key-field").hidden = !about.key;
  await watchWorker();
}

async function watchWorker() {
  let again = 2000;
  try {
    const response = await fetch(`${base()}/health`, { headers: headers() });
    if (response.ok) {
      const { workers, jobs } = await response.json();
      const waiting = jobs.inQueue ? `, ${jobs.inQueue} in the queue` : "";
      $("worker").textContent = workers.ready ? `worker ready${waiting}` : `worker loading${waiting}`;
      again = workers.ready ? 10000 : 1000;
    } else {
      $("worker").textContent = response.status === 401 ? "the endpoint wants its API key (see Settings)" : `the endpoint answers ${response.status}`;
    }
  } catch {
    $("worker").textContent = "the server is gone; start it again with ci/just serve";
  }
  setTimeout(watchWorker, again);
}

// ---- the conversation

function turn(role, name) {
  $("empty")?.remove();
  const box = document.createElement("article");
  box.className = `turn ${role}`;
  const head = document.createElement("h2");
  head.textContent = name;
  const text = document.createElement("p");
  box.append(head, text);
  $("log").append(box);
  follow(true);
  return { box, head, text };
}

function follow(always) {
  const log = $("log");
  if (always || log.scrollHeight - log.scrollTop - log.clientHeight < 120) {
    log.scrollTop = log.scrollHeight;
    if (always) $("log").lastElementChild?.scrollIntoView({ block: "nearest" });
  }
}

function showError(title, message) {
  const { box, head, text } = turn("error", title);
  head.textContent = title;
  box.setAttribute("role", "alert");
  text.textContent = message;
  follow(true);
}

function showErrorObject(status, error) {
  const parts = [status, error.type, error.code, error.param && `param ${error.param}`];
  showError(parts.filter(Boolean).join(" · "), error.message ?? JSON.stringify(error));
}

// ---- one request

function requestBody() {
  const system = $("system").value.trim();
  const body = { model: about.model, messages: [...(system ? [{ role: "system", content: system }] : []), ...messages] };
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if ($(name).value !== "") body[name] = $(name).valueAsNumber;
  }
  if ($("stream").checked) Object.assign(body, { stream: true, stream_options: { include_usage: true } });
  return body;
}

async function send() {
  const content = $("prompt").value;
  if (running || !content.trim()) return;
  const wrong = document.querySelector("#settings :invalid");
  if (wrong) {
    $("settings").open = true;
    wrong.reportValidity();
    return;
  }
  $("prompt").value = "";
  messages.push({ role: "user", content });
  turn("user", "You").text.textContent = content;
  busy(true);
  const answer = { shown: null, content: "", reasoning: "" };
  try {
    await exchange(requestBody(), answer);
  } catch (error) {
    if (!stopped) showError("The request failed", `${error.name}: ${error.message}`);
  }
  if (answer.content) messages.push({ role: "assistant", content: answer.content });
  else messages.pop(); // a question without an answer would make the next request an odd one
  if (stopped) {
    const note = document.createElement("p");
    note.className = "note";
    note.textContent = "stopped";
    (answer.shown?.box ?? $("log")).append(note);
  }
  busy(false);
  follow(false);
}

async function exchange(body, answer) {
  const clock = { start: performance.now(), first: 0, last: 0, deltas: 0, usage: null };
  const path = `${base()}/openai/v1/chat/completions`;
  const key = $("key").value ? "Authorization: Bearer …\n" : "";
  $("request").textContent = `POST ${path}\nContent-Type: application/json\n${key}\n${JSON.stringify(body, null, 2)}`;
  $("response").textContent = $("frames").textContent = "";
  measure(clock);
  running = new AbortController();
  const response = await fetch(path, { method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal });
  const type = response.headers.get("Content-Type") ?? "";
  $("response").textContent = `HTTP ${response.status} ${response.statusText}\nContent-Type: ${type}\n\n`;
  if (type.startsWith("text/event-stream")) await readFrames(response, answer, clock);
  else readWhole(response, await response.text(), answer, clock);
  measure(clock);
}

async function readFrames(response, answer, clock) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", frames = 0, ended = false; // a last frame or an error
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    $("response").append(value);
    $("response").scrollTop = $("response").scrollHeight;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const frame of parts) {
      $("frames").textContent = `${++frames} frame${frames === 1 ? "" : "s"}`;
      const data = frame.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") ended = true;
      else if (data && !readFrame(JSON.parse(data), answer, clock)) ended = true;
    }
    measure(clock);
  }
  if (!ended) showError("The stream broke off", "It ended without its last frame, data: [DONE].");
}

function readFrame(chunk, answer, clock) {
  if (chunk.error) {
    showErrorObject("in the stream", chunk.error);
    return false;
  }
  clock.usage = chunk.usage ?? clock.usage;
  for (const { delta, finish_reason: reason } of chunk.choices ?? []) {
    if (delta?.content || delta?.reasoning_content) {
      clock.first ||= performance.now();
      clock.last = performance.now();
      clock.deltas += 1;
    }
    show(answer, delta ?? {}, reason);
  }
  return true;
}

function readWhole(response, text, answer, clock) {
  $("response").append(text);
  let value = null;
  try {
    value = JSON.parse(text);
  } catch {
    showError(`${response.status} ${response.statusText}`, text || "an empty body");
    return;
  }
  if (!response.ok || value.error) {
    const error = value.error ?? value;
    showErrorObject(response.status, typeof error === "object" ? error : { message: String(error) });
    return;
  }
  clock.last = performance.now();
  clock.usage = value.usage;
  for (const { message, finish_reason: reason } of value.choices) show(answer, message, reason);
}

function show(answer, { content, reasoning_content: reasoning, tool_calls: calls }, reason) {
  answer.shown ??= turn("assistant", about.model);
  const { box, text } = answer.shown;
  if (reasoning) {
    answer.reasoning += reasoning;
    let thought = box.querySelector(".reasoning");
    if (!thought) {
      thought = document.createElement("p");
      thought.className = "reasoning";
      box.insertBefore(thought, text);
    }
    thought.textContent = answer.reasoning;
  }
  if (content) {
    answer.content += content;
    text.append(content);
  }
  if (calls?.length) text.append(`${JSON.stringify(calls)}\n`);
  if (reason && reason !== "stop") {
    const note = document.createElement("p");
    note.className = "note";
    note.textContent = reason === "length" ? "cut at max tokens" : reason;
    box.append(note);
  }
  follow(false);
}

function measure({ start, first, last, deltas, usage }) {
  const tokens = usage?.completion_tokens ?? deltas;
  const known = last > 0;
  const seconds = (last - (first || start)) / 1000;
  const counted = first ? tokens - 1 : tokens;
  $("ttft").textContent = first ? `${Math.round(first - start)} ms` : "-";
  $("speed").textContent = known && seconds > 0.01 && counted > 0 ? (counted / seconds).toFixed(1) : "-";
  $("tokens").textContent = usage ? `${usage.prompt_tokens} in, ${tokens} out` : known ? `${tokens} out` : "-";
  $("total").textContent = known ? `${((performance.now() - start) / 1000).toFixed(2)} s` : "-";
}

// ---- controls

function busy(on) {
  if (on) stopped = false;
  else running = null;
  $("send").disabled = $("new").disabled = on;
  $("stop").disabled = !on;
  $("log").setAttribute("aria-busy", on);
  if (!on) $("prompt").focus({ preventScroll: true });
}

function stop() {
  if (!running) return;
  stopped = true;
  running.abort();
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
});
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", () => {
  messages.length = 0;
  $("log").replaceChildren();
  $("prompt").focus();
});
learn();
