"use strict";
// The page of `fastwm view`. It asks the server for JSON and draws on canvases; nothing comes from anywhere else.

const $ = (id) => document.getElementById(id);
const colours = () => {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(["ink", "soft", "line", "blue", "warm", "bad"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
};
const said = (value) => {
  if (value === null || value === undefined) return "-";
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(1);
  return size >= 1000 ? value.toFixed(0) : Number(value.toPrecision(3)).toString();
};

class Refused extends Error {}

async function ask(name, body = {}) {
  let answer;
  try {
    answer = await fetch(`/api/${name}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  } catch (error) {
    $("closed").hidden = false;
    throw error;
  }
  $("closed").hidden = true;
  const told = await answer.json();
  if (!answer.ok) throw new Refused(told.error);
  return told;
}

function problem(tab, text) {
  const line = document.querySelector(`#${tab} .problem`);
  line.textContent = text;
  line.hidden = !text;
}

// An action of the user; what the server refuses is shown in the tab.
const guarded = (tab, work) => async (...given) => {
  try {
    problem(tab, "");
    await work(...given);
  } catch (error) {
    if (error instanceof Refused) problem(tab, error.message);
    else if (!(error instanceof TypeError)) throw error; // fetch failed: the banner says so
  }
};

function make(tag, text = "", properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  element.textContent = text;
  return element;
}

// Pictures

function paint(canvas, picture) {
  const bytes = atob(picture.rgb), pixels = new ImageData(picture.width, picture.height);
  for (let i = 0, j = 0; i < bytes.length; i += 3, j += 4) {
    pixels.data[j] = bytes.charCodeAt(i);
    pixels.data[j + 1] = bytes.charCodeAt(i + 1);
    pixels.data[j + 2] = bytes.charCodeAt(i + 2);
    pixels.data[j + 3] = 255;
  }
  canvas.width = picture.width;
  canvas.height = picture.height;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

// A vector as a picture: the environments that are known are drawn, others are bars.
function paintNumbers(canvas, env, obs) {
  canvas.width = 480;
  canvas.height = 320;
  const pen = canvas.getContext("2d"), all = Object.entries(obs).flatMap(([key, values]) => values.map((value, i) => [values.length > 1 ? `${key} ${i}` : key, value]));
  pen.fillStyle = "#10171b";
  pen.fillRect(0, 0, 480, 320);
  const values = all.map(([, value]) => value ?? 0);
  if (/cartpole/i.test(env) && values.length === 4) {
    const x = 240 + values[0] * 85, tip = [x + 130 * Math.sin(values[2]), 240 - 130 * Math.cos(values[2])];
    pen.fillStyle = "#49555c"; pen.fillRect(0, 258, 480, 2);
    pen.fillStyle = "#4fc3d9"; pen.fillRect(x - 32, 240, 64, 28);
    line(pen, [[x, 242], tip], "#f0a35e", 9);
    return;
  }
  if (/pendulum/i.test(env) && values.length === 3) {
    line(pen, [[240, 160], [240 - 120 * values[1], 160 - 120 * values[0]]], "#f0a35e", 12);
    pen.fillStyle = "#4fc3d9"; pen.beginPath(); pen.arc(240, 160, 8, 0, 7); pen.fill();
    return;
  }
  const rows = Math.min(all.length, 20), height = 310 / rows;
  pen.font = "12px system-ui"; pen.textBaseline = "middle";
  all.slice(0, rows).forEach(([name, value], i) => {
    const y = 5 + height * i, length = Math.tanh((value ?? 0) / 2) * 150;
    pen.fillStyle = "#98a3ab"; pen.fillText(name.slice(0, 18), 8, y + height / 2); pen.fillText(said(value), 420, y + height / 2);
    pen.fillStyle = value < 0 ? "#f0a35e" : "#4fc3d9"; pen.fillRect(265, y + height * 0.2, length, height * 0.6);
  });
}

function line(pen, points, colour, width) {
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.lineJoin = pen.lineCap = "round";
  pen.beginPath();
  points.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.stroke();
}

// Lines over steps: series [{values, steps?, colour?}], with a mark at one step and a border after the context.
function chart(canvas, series, { mark = null, border = null, low = null, high = null } = {}) {
  const colour = colours(), pen = canvas.getContext("2d"), { width, height } = canvas;
  const pad = { left: 52, right: 8, top: 8, bottom: 16 };
  pen.clearRect(0, 0, width, height);
  const steps = series.flatMap((each) => each.steps ?? each.values.map((_, i) => i));
  const values = series.flatMap((each) => each.values).filter((value) => value !== null);
  if (!values.length) return;
  const reduce = (pick, list) => list.reduce((a, b) => pick(a, b));
  let bottom = low ?? reduce(Math.min, values), top = high ?? reduce(Math.max, values);
  if (top - bottom < 1e-9) { bottom -= 0.5; top += 0.5; }
  const first = reduce(Math.min, steps), last = Math.max(reduce(Math.max, steps), first + 1);
  const x = (step) => pad.left + ((step - first) / (last - first)) * (width - pad.left - pad.right);
  const y = (value) => height - pad.bottom - ((value - bottom) / (top - bottom)) * (height - pad.top - pad.bottom);
  pen.font = "11px system-ui";
  pen.fillStyle = colour.soft;
  pen.textAlign = "right";
  pen.fillText(said(top), pad.left - 4, pad.top + 8);
  pen.fillText(said(bottom), pad.left - 4, height - pad.bottom);
  pen.fillText(said(last), width - pad.right, height - 3);
  pen.textAlign = "left";
  pen.fillText(said(first), pad.left, height - 3);
  line(pen, [[pad.left, height - pad.bottom], [width - pad.right, height - pad.bottom]], colour.line, 1);
  if (border !== null) line(pen, [[x(border), pad.top], [x(border), height - pad.bottom]], colour.soft, 1);
  series.forEach((each, i) => {
    const at = each.steps ?? each.values.map((_, k) => k);
    const points = at.map((step, k) => [step, each.values[k]]).filter(([, value]) => value !== null).map(([step, value]) => [x(step), y(value)]);
    if (points.length) line(pen, points.length > 1 ? points : [points[0], [points[0][0] + 1, points[0][1]]], each.colour ?? [colour.blue, colour.warm, colour.bad, colour.soft][i % 4], 1.6);
  });
  if (mark !== null) line(pen, [[x(mark), pad.top], [x(mark), height - pad.bottom]], colour.ink, 1);
  canvas.stepAt = (client) => {
    const box = canvas.getBoundingClientRect(), place = ((client - box.left) / box.width) * width;
    return Math.round(Math.min(Math.max(first + ((place - pad.left) / (width - pad.left - pad.right)) * (last - first), first), last));
  };
}

function card(parent, name, meaning, size = [300, 110]) {
  const box = make("div", "", { className: "card" }), canvas = make("canvas", "", { className: "chart", width: size[0], height: size[1] });
  canvas.setAttribute("aria-label", name);
  box.append(make("h3", name));
  if (meaning) box.append(make("p", meaning.replaceAll("`", "")));
  box.append(canvas);
  parent.append(box);
  return canvas;
}

// Tabs

let run = {}, met = false, shown = "dream";
const opened = {};

function open(tab) {
  shown = tab;
  for (const button of document.querySelectorAll("nav button")) button.setAttribute("aria-selected", String(button.dataset.tab === tab));
  for (const main of document.querySelectorAll("main")) main.hidden = main.id !== tab;
  if (tab !== "dream") dream.pause();
  location.hash = tab;
  if (met && !opened[tab]) { opened[tab] = true; openers[tab](); }
}

async function meet() {
  try {
    const before = run.problem;
    run = await ask("run");
    met = true;
    const about = [run.logdir, run.agent, run.env, run.step === undefined ? null : `step ${run.step.toLocaleString("en")}`, run.training ? "training now" : null];
    $("about").textContent = about.filter(Boolean).join(" · ");
    document.title = `${run.logdir} · fastwm`;
    for (const tab of ["dream", "agent", "replay"]) if (run.problem) problem(tab, run.problem);
    if (before && !run.problem) for (const tab of ["dream", "agent", "replay"]) { problem(tab, ""); delete opened[tab]; }
    if (!opened[shown] || (before && !run.problem)) open(shown);
  } catch (error) {
    if (error instanceof Refused) $("about").textContent = error.message;
  }
}

// Dream

const dream = {
  id: null, playing: false, wheel: false, start: null, seed: 0, total: 0, steps: 0, history: [], held: new Map(), last: [], timer: null, times: [],
  pause() { this.playing = false; clearTimeout(this.timer); $("dream-play").textContent = "Play"; },
};

const KEYS = { left: ["ArrowLeft", "a"], right: ["ArrowRight", "d"], up: ["ArrowUp", "w"], down: ["ArrowDown", "s"] };
const AXES = [["left", "right"], ["down", "up"]];

// What a key does: control and value. Choices have the number keys too; the first two axes have arrows.
function bindings() {
  const made = [], controls = run.controls ?? [];
  const bind = (name, control, value, keys) => made.push({ name, control, value, keys });
  controls.forEach((control, i) => {
    if (!control.classes) {
      const [low, high] = AXES[i] ?? [null, null];
      if (control.low < 0) bind(`${control.name} -`, i, -1, low ? KEYS[low] : []);
      bind(`${control.name} +`, i, 1, high ? KEYS[high] : []);
      return;
    }
    for (let value = 0; value < control.classes; value++) {
      const keys = i === 0 && value < 9 ? [String(value + 1)] : [];
      let name = `${control.classes > 2 || controls.length > 1 ? `${control.name} ` : ""}${value + 1}`;
      if (i === 0 && control.name === "move") {
        name = ["still", "right", "left"][value];
        keys.push(...(value === 1 ? KEYS.right : value === 2 ? KEYS.left : []));
      } else if (i === 0 && control.classes === 2) {
        name = ["left", "right"][value];
        keys.push(...(value ? KEYS.right : KEYS.left));
      }
      bind(name, i, value, keys);
    }
  });
  if (controls.length === 3 && controls[1].name === "gas") { // the car: up is gas, down is brake
    made.find((each) => each.name === "gas +").keys = KEYS.up;
    made.find((each) => each.name === "brake +").keys = KEYS.down;
  }
  return made;
}

function action() {
  const values = run.controls.map((control, i) => control.idle ?? dream.last[i] ?? 0);
  for (const { control, value } of dream.held.values()) values[control] = value;
  dream.last = values;
  return values;
}

function hold(binding, source, down) {
  if (down) dream.held.set(source, binding); else dream.held.delete(source);
  for (const button of document.querySelectorAll("#dream-touch button")) button.classList.toggle("held", [...dream.held.values()].some((each) => each.name === button.textContent));
}

function tellDream(told) {
  const images = run.images, canvas = $("dream-frame");
  if (images.length) paint(canvas, told.obs[images[0]]); else paintNumbers(canvas, run.env, told.obs);
  $("dream-step").textContent = dream.steps;
  $("dream-reward").textContent = said(told.reward);
  $("dream-return").textContent = told.reward === undefined ? "-" : said(dream.total);
  $("dream-value").textContent = said(told.value);
  $("dream-end").value = told.end ?? 0;
  $("dream-end-value").textContent = told.end === undefined ? "not predicted" : told.end.toFixed(3);
  chart($("dream-chart"), [{ values: dream.history }]);
}

const startDream = guarded("dream", async (at) => {
  dream.pause();
  dream.start = at;
  const told = await ask("dream", { seed: dream.seed, at });
  Object.assign(dream, { id: told.dream, total: 0, steps: 0, history: [], last: [], times: [] });
  tellDream(told);
  $("dream-state").textContent = `Row ${at} of a real window, as the model sees it. Press Play, or a key.`;
  for (const button of document.querySelectorAll("#dream-starts button")) button.setAttribute("aria-pressed", String(Number(button.dataset.at) === at));
});

const stepDream = guarded("dream", async () => {
  const began = performance.now(), id = dream.id;
  const told = await ask("step", { dream: id, action: dream.wheel ? null : action(), temperature: Number($("dream-temperature").value) });
  if (id !== dream.id) return; // another dream has been started meanwhile
  dream.steps = told.step;
  dream.total += told.reward ?? 0;
  if (told.reward !== undefined) dream.history = [...dream.history, told.reward].slice(-200);
  tellDream(told);
  const now = performance.now();
  dream.times = [...dream.times, now].slice(-16);
  const rate = dream.times.length > 1 ? (1000 * (dream.times.length - 1)) / (now - dream.times[0]) : 0;
  $("dream-speed").textContent = `${rate.toFixed(1)} frames a second, ${(now - began).toFixed(0)} ms each`;
  $("dream-state").textContent = dream.wheel ? "The agent drives." : "You drive.";
  if ((told.end ?? 0) > 0.5) {
    dream.pause();
    $("dream-state").textContent = "The model says that the episode is over. Restart, or play on.";
  }
});

async function tick() {
  if (!dream.playing) return;
  const due = performance.now() + 1000 / Number($("dream-rate").value);
  const before = dream.steps;
  await stepDream();
  if (dream.steps === before) dream.pause(); // refused, or the server is closed
  if (dream.playing) dream.timer = setTimeout(tick, Math.max(0, due - performance.now()));
}

function play() {
  if (dream.id === null || dream.playing) return;
  Object.assign(dream, { playing: true, times: [] });
  $("dream-play").textContent = "Pause";
  tick();
}

const showStarts = guarded("dream", async () => {
  const told = await ask("starts", { seed: dream.seed }), strip = $("dream-starts");
  strip.replaceChildren(...told.rows.map((row) => {
    const button = make("button");
    button.dataset.at = row.at;
    if (row.frame) { const canvas = make("canvas"); paint(canvas, row.frame); button.append(canvas); }
    button.append(make("span", `row ${row.at}`));
    button.onclick = () => startDream(row.at);
    return button;
  }));
  await startDream(told.rows[Math.min(1, told.rows.length - 1)].at);
});

function openDream() {
  if (run.problem) return;
  const all = bindings();
  $("dream-touch").replaceChildren(...all.map((binding) => {
    const button = make("button", binding.name);
    const up = () => hold(binding, binding.name, false);
    button.onpointerdown = (event) => { event.preventDefault(); hold(binding, binding.name, true); if (!dream.wheel) play(); };
    button.onpointerup = button.onpointercancel = button.onpointerleave = up;
    return button;
  }));
  const keyed = all.filter((binding) => binding.keys.length);
  $("dream-keys").textContent = `Keys: ${keyed.map((each) => `${each.keys.map((key) => key.replace("Arrow", "")).join(" or ")} ${each.name}`).join(", ")}; space plays and pauses, r restarts, h hands the wheel to the agent and takes it back.`;
  showStarts();
}

function toggleWheel() {
  dream.wheel = !dream.wheel;
  $("dream-wheel").setAttribute("aria-pressed", String(dream.wheel));
  $("dream-wheel").textContent = dream.wheel ? "Take the wheel back" : "Let the agent drive";
}

const restart = () => { if (dream.start !== null) startDream(dream.start); };
$("dream-play").onclick = () => (dream.playing ? dream.pause() : play());
$("dream-restart").onclick = restart;
$("dream-wheel").onclick = toggleWheel;
$("dream-others").onclick = () => { dream.seed += 1; showStarts(); };
for (const name of ["temperature", "rate"]) $(`dream-${name}`).oninput = (event) => { $(`dream-${name}-value`).textContent = event.target.value; };

function onKey(event, down) {
  if (shown !== "dream" || run.problem || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target instanceof HTMLInputElement && event.key.startsWith("Arrow")) return; // a slider's own
  const binding = bindings().find((each) => each.keys.includes(event.key));
  if (binding) {
    event.preventDefault();
    hold(binding, event.key, down);
    if (down && !dream.wheel) play();
  } else if (down && !event.repeat && event.key === " " && !(event.target instanceof HTMLButtonElement)) {
    event.preventDefault();
    if (dream.playing) dream.pause(); else play();
  } else if (down && !event.repeat && event.key === "r") restart();
  else if (down && !event.repeat && event.key === "h") toggleWheel();
}
addEventListener("keydown", (event) => onKey(event, true));
addEventListener("keyup", (event) => onKey(event, false));
addEventListener("blur", () => { dream.held.clear(); });

// Playing a list of steps, by a slider and a button

function player(slider, button, show) {
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
  const go = (at) => { slider.value = at; show(Number(slider.value)); };
  slider.oninput = () => show(Number(slider.value));
  button.onclick = () => {
    if (timer) return stop();
    button.textContent = "Pause";
    if (Number(slider.value) >= Number(slider.max)) slider.value = 0;
    timer = setInterval(() => (Number(slider.value) >= Number(slider.max) ? stop() : go(Number(slider.value) + 1)), 60);
  };
  return { go, stop };
}

function scrubbed(canvas, go) {
  canvas.onpointerdown = canvas.onpointermove = (event) => { if ((event.buttons || event.type === "pointerdown") && canvas.stepAt) go(canvas.stepAt(event.clientX)); };
}

// Agent

let episode = null, agentSeed = 0;
const agentCharts = [];

function showAgent(at) {
  const step = episode.steps[at], canvas = $("agent-frame");
  if (step.frame) {
    const picture = new Image();
    picture.onload = () => {
      canvas.width = picture.width; canvas.height = picture.height;
      canvas.getContext("2d").drawImage(picture, 0, 0);
    };
    picture.src = `data:image/jpeg;base64,${step.frame}`;
  } else paintNumbers(canvas, run.env, step.obs);
  const acted = Object.entries(step.action).map(([key, values]) => `${key} ${values.map(said).join(", ")}`).join("; ");
  $("agent-state").textContent = `step ${at} of ${episode.steps.length - 1}, return ${said(step.return)}, ${acted}`;
  for (const { canvas: drawn, series, options } of agentCharts) chart(drawn, series, { ...options, mark: at });
}
const agentPlayer = player($("agent-at"), $("agent-play"), (at) => episode && showAgent(at));

const playEpisode = guarded("agent", async () => {
  $("agent-run").disabled = true;
  $("agent-told").textContent = "The agent is playing.";
  try {
    episode = await ask("episode", { seed: agentSeed++ });
  } finally {
    $("agent-run").disabled = false;
    $("agent-told").textContent = "";
  }
  const steps = episode.steps, parent = $("agent-charts");
  $("agent-told").textContent = `${steps.length} steps, return ${said(steps.at(-1).return)}${episode.cut ? ", cut here" : ""}. Drag over a curve to scrub.`;
  parent.replaceChildren();
  agentCharts.length = 0;
  const add = (name, meaning, series, options = {}) => {
    const canvas = card(parent, name, meaning, [360, 96]);
    agentCharts.push({ canvas, series, options });
    scrubbed(canvas, agentPlayer.go);
  };
  if (steps[0].value !== undefined) add("value", "Return that the critic expects from here.", [{ values: steps.map((step) => step.value) }]);
  for (const [key, first] of Object.entries(steps[0].policy ?? {})) {
    if (first.probs) add(`probabilities of ${key}`, first.probs.map((_, i) => i + 1).join(", "), first.probs.map((_, i) => ({ values: steps.map((step) => step.policy[key].probs[i]) })), { low: 0, high: 1 });
    else add(`mean of ${key}`, "The policy's mean, one line an entry.", first.mean.map((_, i) => ({ values: steps.map((step) => step.policy[key].mean[i]) })));
  }
  if (!steps[0].policy) for (const [key, first] of Object.entries(steps[0].action)) add(key, "The action taken.", first.map((_, i) => ({ values: steps.map((step) => step.action[key][i]) })));
  add("reward", "What the environment gave.", [{ values: steps.map((step) => step.reward) }]);
  Object.assign($("agent-at"), { max: steps.length - 1, disabled: false });
  $("agent-play").disabled = false;
  agentPlayer.stop();
  agentPlayer.go(0);
});
$("agent-run").onclick = playEpisode;

// Training

const trainingCharts = new Map();

const showTraining = guarded("training", async () => {
  const told = await ask("metrics"), parent = $("training-charts");
  const count = told.groups.reduce((sum, group) => sum + group.curves.length, 0);
  $("training-told").textContent = count ? `${count} curves${run.training ? ", live" : ""}` : "Nothing is logged yet.";
  for (const group of told.groups) {
    if (group.name && !trainingCharts.has(group.name)) {
      const head = make("h2", `stage ${group.name}`);
      trainingCharts.set(group.name, head);
      parent.append(head);
    }
    for (const curve of group.curves) {
      const id = `${group.name}/${curve.name}`;
      if (!trainingCharts.has(id)) trainingCharts.set(id, card(parent, curve.name, curve.meaning));
      chart(trainingCharts.get(id), [{ steps: curve.steps, values: curve.values }]);
    }
  }
});

// Replay

let seen = null, replaySeed = 0;
const replayPictures = [], replayCharts = [];
const PARTS = ["truth", "reconstruction", "dream", "error"];

function showReplay(at) {
  for (const { canvas, key, part } of replayPictures) paint(canvas, seen.keys[key][at][part]);
  for (const { canvas, series } of replayCharts) chart(canvas, series, { mark: at, border: seen.context });
  $("replay-told").textContent = `step ${at}: ${at < seen.context ? "the model sees the frames" : "imagined from the actions alone"}${seen.first[at] ? "; an episode begins" : ""}`;
}
const replayPlayer = player($("replay-at"), $("replay-play"), (at) => seen && showReplay(at));

const showWindow = guarded("replay", async () => {
  if (run.problem) return;
  seen = await ask("window", { seed: replaySeed });
  replayPictures.length = replayCharts.length = 0;
  $("replay-pictures").replaceChildren();
  $("replay-charts").replaceChildren();
  let length = 0;
  for (const [key, rows] of Object.entries(seen.keys)) {
    length = rows.length;
    if (run.images.includes(key)) {
      for (const part of PARTS) {
        const figure = make("figure"), canvas = make("canvas");
        canvas.setAttribute("aria-label", `${part} of ${key}`);
        figure.append(canvas, make("figcaption", part));
        $("replay-pictures").append(figure);
        replayPictures.push({ canvas, key, part });
      }
    } else {
      rows[0].truth.slice(0, 12).forEach((_, i) => {
        const canvas = card($("replay-charts"), rows[0].truth.length > 1 ? `${key} ${i}` : key, "blue: truth, orange: dream; it sees nothing right of the border");
        replayCharts.push({ canvas, series: ["truth", "dream"].map((part) => ({ values: rows.map((row) => row[part][i]) })) });
        scrubbed(canvas, replayPlayer.go);
      });
    }
  }
  $("replay-at").max = length - 1;
  replayPlayer.stop();
  replayPlayer.go(0);
});
$("replay-others").onclick = () => { replaySeed += 1; showWindow(); };

const openers = { dream: openDream, agent: () => run.problem && problem("agent", run.problem), training: showTraining, replay: showWindow };
for (const button of document.querySelectorAll("nav button")) button.onclick = () => open(button.dataset.tab);
if (openers[location.hash.slice(1)]) shown = location.hash.slice(1);
meet();
setInterval(() => { if (!document.hidden) meet().then(() => shown === "training" && showTraining()); }, 3000);
