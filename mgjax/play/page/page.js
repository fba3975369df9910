// The page of `mgjax play`: one websocket, a canvas, and what is around them. mgjax/play/protocol.py has the messages.

import { Controls, label, typing } from "./controls.js";
import { Pacer } from "./pacer.js";

const $ = (id) => document.getElementById(id);
const view = $("view"), pen = view.getContext("2d"), VERSION = 1, FRAME = 1, LOG = 2;
const given = new URLSearchParams(location.hash.slice(1));
const token = given.get("token") ?? "";
let key = given.get("take") ?? sessionStorage.getItem("mgjax stream") ?? "";
let socket = null, world = null, controls = null, state = null, tries = 0, ended = false, recorder = null;
let number = 0, sent = "", times = new Map(), receipts = [], shown = [], delays = [], slot = 0, rewinding = false;

const say = (text) => ($("message").textContent = text);
const pacer = new Pacer(draw);

// The line

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/play`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => tell("hello", { version: VERSION, token, key });
  socket.onmessage = ({ data }) => (typeof data === "string" ? hear(JSON.parse(data)) : receive(data));
  socket.onclose = () => {
    view.classList.add("slow");
    if (ended) return;
    say("The line is cut; taking it up again…");
    setTimeout(connect, Math.min(8000, 400 * 2 ** tries++) * (0.75 + Math.random() / 2));
  };
}

const tell = (type, values = {}) => socket?.readyState === 1 && socket.send(JSON.stringify({ type, ...values }));

const stages = { weights: "Loading the weights…", "first picture": "Looking at the first picture…", compiling: "Compiling…" };
const sentences = { busy: "All places are taken.", token: "", idle: "", elsewhere: "", malformed: "", version: "" };

function hear(message) {
  if (message.type === "progress") say(stages[message.stage] ?? message.stage);
  else if (message.type === "welcome") welcome(message);
  else if (message.type === "state") take(message);
  else if (message.type === "receipt") receipt(message);
  else if (message.type === "pong") $("trip").textContent = `${Math.round(performance.now() - message.time)} ms`;
  else if (message.type === "forked") open(`#${new URLSearchParams({ token, take: message.key })}`);
  else if (message.type === "error") {
    say(`${sentences[message.code] ?? ""} ${message.text}`.trim());
    if (message.code === "refused") setTimeout(() => say(state?.paused ? "Paused" : ""), 4000);
    else if (message.code === "busy") {
      ended = true; // no storm of pages that all come back at once: one more try, when the server says, or by hand
      setTimeout(() => ((ended = false), connect()), 1000 * message.retry);
    } else if (message.code !== "closing") ended = true;
    if (["idle", "malformed", "ended"].includes(message.code)) sessionStorage.removeItem("mgjax stream");
  }
}

function welcome(message) {
  const again = world !== null;
  world = message;
  key = message.key;
  tries = 0;
  sessionStorage.setItem("mgjax stream", key);
  history.replaceState(null, "", token ? `#${new URLSearchParams({ token })}` : location.pathname);
  view.classList.remove("slow");
  pacer.period = 1000 / world.fps;
  pacer.clear(message.state.epoch);
  sent = "";
  if (!again) furnish();
  take(message.state);
  if (message.taken_up && state.paused) tell("pause", { on: false });
}

function furnish() {
  view.width = world.width;
  view.height = world.height;
  $("stage").style.setProperty("--shape", `${world.width} / ${world.height}`);
  $("name").textContent = world.model;
  $("note").textContent = world.note;
  $("what").textContent = `${world.model}, ${world.width} x ${world.height}, ${world.fps} frames a second in chunks of ` +
    `${world.chunk_frames}; ${world.settings}; weights ${world.fingerprint}`;
  document.title = `${world.model} · mgjax`;
  controls = new Controls(view, world, report);
  for (const [i, name] of world.pictures.entries()) {
    const button = document.createElement("button");
    button.append(Object.assign(new Image(), { src: `pictures/${i}`, alt: `start from ${name}` }));
    button.dataset.name = name;
    button.addEventListener("click", () => (begin(name), view.focus()));
    $("gallery").append(button);
  }
  keys();
  setInterval(report, 1000 / 60); // the gamepad has no events
  setInterval(() => tell("ping", { time: performance.now() }), 2000);
  if (matchMedia("(pointer: coarse)").matches) controls.showPad($("pad"));
  addEventListener("touchstart", () => controls.showPad($("pad")), { once: true });
  view.focus();
}

function take(message) {
  state = message;
  if (state.epoch > pacer.epoch) pacer.clear(state.epoch);
  $("pause").textContent = state.paused ? "Go on" : "Pause";
  say(state.paused ? "Paused" : "");
  $("load").disabled = !Object.keys(state.saved).length;
  $("load").textContent = Object.keys(state.saved).length > 1 ? `Load ${Object.keys(state.saved).length}` : "Load";
  $("seed").value = state.seed;
  for (const button of $("gallery").children) button.setAttribute("aria-pressed", button.dataset.name === state.picture);
  reach();
}

function reach() {
  if (rewinding || !state) return;
  Object.assign($("rewind"), { min: state.oldest, max: state.chunk, value: state.chunk, disabled: state.oldest >= state.chunk });
  $("rewound").textContent = "";
}

// Frames

async function receive(data) {
  const head = new DataView(data);
  if (head.getUint8(0) === LOG) return file(new Blob([data.slice(1)]), `${world.model}.ndjson`);
  const frame = {
    epoch: head.getUint32(1, true), number: head.getUint32(5, true), chunk: head.getUint32(9, true),
    due: performance.now() + head.getFloat32(13, true),
  };
  frame.image = await createImageBitmap(new Blob([data.slice(17)]));
  pacer.put(frame);
}

function receipt(message) {
  tell("ack", { chunk: message.chunk, ...(delays.length ? { delay: delays.at(-1) } : {}) });
  $("chunk").textContent = `${Math.round(1000 * message.seconds)} ms`;
  if (message.epoch !== pacer.epoch && message.epoch < pacer.epoch) return;
  for (const [input, frame] of message.inputs) receipts.push({ input, frame, epoch: message.epoch });
  if (state) {
    state.chunk = message.chunk + 1;
    state.oldest = Math.max(state.oldest, 0);
    reach();
  }
  view.dataset.chunk = message.chunk;
}

function draw(frame, now) {
  pen.drawImage(frame.image, 0, 0, view.width, view.height);
  view.dataset.frame = frame.number;
  view.dataset.epoch = frame.epoch;
  view.dataset.frames = Number(view.dataset.frames ?? 0) + 1;
  while (receipts.length && (receipts[0].epoch < frame.epoch || receipts[0].frame <= frame.number)) {
    const { input } = receipts.shift(), asked = times.get(input);
    times.delete(input);
    if (asked !== undefined && asked.pressed) {
      delays.push(now - asked.at);
      if (delays.length > 40) delays.shift();
      $("delay").textContent = `${Math.round(now - asked.at)} ms`;
      view.dataset.input = input;
    }
  }
  shown.push(now);
  while (now - shown[0] > 4000) shown.shift();
  const recent = shown.filter((time) => now - time < 2000), steps = recent.length - 1;
  if (steps > 0) $("fps").textContent = `${((1000 * steps) / (now - recent[0])).toFixed(1)} of ${world.fps}`;
  $("walked").textContent = `${(frame.number / world.fps).toFixed(1)} s`;
  $("lost").textContent = `${pacer.dropped}, ${pacer.held}`;
  if ($("measures").open) plot();
}

function plot() {
  const canvas = $("timeline"), ink = canvas.getContext("2d"), style = getComputedStyle(canvas);
  ink.clearRect(0, 0, canvas.width, canvas.height);
  const scale = canvas.height / (4 * pacer.period);
  ink.fillStyle = style.borderTopColor;
  ink.fillRect(0, canvas.height - scale * pacer.period, canvas.width, 1);
  ink.fillStyle = style.color;
  const gaps = shown.slice(1).map((time, i) => time - shown[i]).slice(-canvas.width / 6);
  gaps.forEach((gap, i) => ink.fillRect(6 * i, canvas.height - scale * gap, 4, scale * gap));
}

// What the player does

function report() {
  if (!world || socket?.readyState !== 1) return;
  const held = controls.names(), [pitch, yaw] = controls.moved(), text = held.join(" ");
  if (text === sent && !pitch && !yaw) return;
  times.set(++number, { at: performance.now(), pressed: text !== sent && held.length > 0 });
  if (times.size > 500) times.delete(times.keys().next().value);
  sent = text;
  tell("input", { number, held, pitch, yaw });
  if (!$("held").hidden) showHeld(held);
}

function showHeld(held) {
  $("held").replaceChildren(...world.names.map((name) => {
    const span = Object.assign(document.createElement("span"), { textContent: label(controls.codes[name] ?? name) });
    span.classList.toggle("on", held.includes(name));
    return span;
  }));
}

const begin = (picture) => tell("begin", { picture, seed: Number($("seed").value) });
const pause = () => state && tell("pause", { on: !state.paused });
const restart = () => state && (state.picture ? begin(state.picture) : tell("begin", { picture: "", seed: Number($("seed").value) }));
const save = () => world && tell("save", { slot: slot++ % world.saves });
const load = () => state && Object.keys(state.saved).length && tell("load", { slot: (slot + world.saves - 1) % world.saves });

async function own(file) {
  if (!file) return;
  if (file.size > 8 * 2 ** 20) return say("That picture is larger than 8 MiB.");
  socket.send(await file.arrayBuffer());
}

function record() {
  if (recorder) return recorder.stop();
  const kind = ["video/mp4", "video/webm"].find((one) => globalThis.MediaRecorder?.isTypeSupported(one));
  if (!kind) return say("This browser cannot record.");
  const parts = [];
  recorder = new MediaRecorder(view.captureStream(), { mimeType: kind, videoBitsPerSecond: 8e6 });
  recorder.ondataavailable = ({ data }) => parts.push(data);
  recorder.onstop = () => {
    recorder = null;
    $("record").classList.remove("on");
    file(new Blob(parts, { type: kind }), `${world.model}.${kind.slice(6)}`);
  };
  recorder.start(1000);
  $("record").classList.add("on");
}

function file(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function full() {
  if (document.fullscreenElement) document.exitFullscreen();
  else $("stage").requestFullscreen?.();
}

function keys() {
  $("keys").replaceChildren(...Object.keys(controls.codes).map((name) => {
    const button = document.createElement("button"), text = () => `${name.replace("_", " ")}: ${label(controls.codes[name])}`;
    button.textContent = text();
    button.addEventListener("click", () => {
      button.textContent = `${name.replace("_", " ")}: press a key`;
      controls.rebind(name, keys);
    });
    return button;
  }));
}

const commands = { KeyP: pause, KeyR: restart, KeyK: save, KeyL: load, KeyF: () => tell("fork"), KeyV: record, KeyG: () => tell("sendlog"), Enter: full };
addEventListener("keydown", (event) => {
  if (!world || typing(event.target) || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.code === "Enter" && event.target !== view && event.target !== document.body) return; // it presses buttons
  if (Object.values(controls.codes).includes(event.code)) return;
  commands[event.code]?.();
});
const clicks = { pause, restart, save, load, record, full, fork: () => tell("fork"), log: () => tell("sendlog") };
for (const [id, act] of Object.entries(clicks)) $(id).addEventListener("click", act);

$("rewind").addEventListener("input", () => {
  rewinding = true;
  $("rewound").textContent = `${(((state.chunk - $("rewind").value) * world.chunk_frames) / world.fps).toFixed(1)} s back`;
});
$("rewind").addEventListener("change", () => {
  rewinding = false;
  tell("rewind", { chunk: Number($("rewind").value) });
});
$("sensitivity").addEventListener("input", () => (controls.sensitivity = Number($("sensitivity").value)));
$("invert").addEventListener("change", () => (controls.invert = $("invert").checked));
$("showing").addEventListener("change", () => (($("held").hidden = !$("showing").checked), showHeld(controls.names())));
$("standard").addEventListener("click", () => (controls.reset(), keys()));
$("file").addEventListener("change", (event) => own(event.target.files[0]));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => (event.preventDefault(), own(event.dataTransfer.files[0])));
addEventListener("paste", (event) => own(event.clipboardData.files[0]));
$("message").addEventListener("click", () => ended && ((ended = false), connect()));

connect();
