// What a player sees and does. The stream runs in worker.js; this thread paces its frames and reads keys and mouse.

const $ = (id) => document.getElementById(id);
const view = $("view"), pen = view.getContext("2d"), say = (text) => ($("message").textContent = text);
const world = await (await fetch("world.json")).json();
const worker = new Worker("worker.js", { type: "module" });
const perChunk = world.latent_frames * world.frames_per_latent;
const chosen = new URLSearchParams(location.search).get("backend");

let stream = 0, paused = false, computing = false, ready = false, frames = [], due = 0, walked = 0, shownTimes = [];
let asked = 0, image = null, picture = world.pictures[0], touched = false;

$("name").textContent = world.name;
$("note").textContent = world.note;
document.title = `${world.name} · mgjax`;
view.width = world.width;
view.height = world.height;

// Keys and mouse: what was held since the last chunk was asked for.

const codes = Object.fromEntries(world.keys.map((key, i) => [`Key${key.toUpperCase()}`, i]));
const arrows = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const held = new Set();
let moved = [0, 0];

addEventListener("keydown", (event) => {
  if (event.target instanceof HTMLInputElement || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.code in codes || event.code in arrows) {
    held.add(event.code);
    event.preventDefault();
  } else if (event.code === "KeyP" && !event.repeat) pause();
  else if (event.code === "KeyR" && !event.repeat) restart();
  showHeld();
});
addEventListener("keyup", (event) => (held.delete(event.code), showHeld()));
const release = () => (held.clear(), showHeld());
addEventListener("blur", release);
document.addEventListener("visibilitychange", () => document.hidden && release());
view.addEventListener("click", () => view.requestPointerLock?.()?.catch?.(() => {}));
view.addEventListener("mousemove", (event) => {
  if (document.pointerLockElement !== view) return;
  const scale = (0.01 * $("sensitivity").value);
  moved[0] -= scale * event.movementY;
  moved[1] += scale * event.movementX;
});

let finger = null;
view.addEventListener("pointerdown", (event) => event.pointerType !== "mouse" && (finger = event));
view.addEventListener("pointermove", (event) => {
  if (!finger || event.pointerId !== finger.pointerId) return;
  const scale = (0.01 * $("sensitivity").value);
  moved[0] -= scale * (event.clientY - finger.clientY);
  moved[1] += scale * (event.clientX - finger.clientX);
  finger = event;
});
for (const name of ["pointerup", "pointercancel"]) view.addEventListener(name, () => (finger = null));

const labels = world.keys.map((key, i) => {
  const label = Object.assign(document.createElement("span"), { textContent: key.toUpperCase(), title: world.columns[i] });
  $("held").append(label);
  return label;
});
const showHeld = () => labels.forEach((label, i) => label.classList.toggle("on", held.has(codesOf[i])));
const codesOf = world.keys.map((key) => `Key${key.toUpperCase()}`);

if (matchMedia("(pointer: coarse)").matches) touchPad();
addEventListener("touchstart", () => touchPad(), { once: true });

function touchPad() {
  if (touched) return;
  touched = true;
  $("pad").hidden = false;
  const place = { forward: "1/2", back: "2/2", left: "2/1", right: "2/3" };
  world.columns.forEach((column, i) => {
    const button = Object.assign(document.createElement("button"), { textContent: world.keys[i].toUpperCase() });
    button.setAttribute("aria-label", column);
    if (place[column]) button.style.gridArea = place[column];
    button.addEventListener("pointerdown", (event) => (event.preventDefault(), held.add(codesOf[i]), showHeld()));
    for (const name of ["pointerup", "pointerleave", "pointercancel"])
      button.addEventListener(name, () => (held.delete(codesOf[i]), showHeld()));
    $("pad").append(button);
  });
}

function pad() {
  const found = navigator.getGamepads?.().find((one) => one?.connected);
  if (!found) return { keys: new Set(), look: [0, 0] };
  const [x, y, rx, ry] = found.axes, keys = new Set(), far = (value) => Math.abs(value) > 0.3;
  const press = (column) => world.columns.includes(column) && keys.add(world.columns.indexOf(column));
  if (far(y)) press(y < 0 ? "forward" : "back");
  if (far(x)) press(x < 0 ? "left" : "right");
  return { keys, look: [far(ry) ? -ry * world.mouse_step : 0, far(rx) ? rx * world.mouse_step : 0] };
}

// One chunk's rows: keys as they are held now; the mouse's way since the last chunk, spread over them.

function rows() {
  const keyboard = new Float32Array(perChunk * world.keys.length);
  const specs = world.programs.denoise.inputs, mouse = new Float32Array(perChunk * specs.mouse.shape[2]);
  const gamepad = pad(), on = new Set(gamepad.keys);
  for (const code of held) if (code in codes) on.add(codes[code]);
  if (!on.size && world.idle !== null) on.add(world.idle);
  const exclusive = world.idle !== null ? [...on].slice(-1) : [...on];
  const look = [moved[0] / perChunk + gamepad.look[0], moved[1] / perChunk + gamepad.look[1]];
  for (const code of held) if (code in arrows) arrows[code].forEach((sign, i) => (look[i] += sign * world.mouse_step));
  moved = [0, 0];
  for (let row = 0; row < perChunk; row++) {
    for (const column of exclusive) keyboard[row * world.keys.length + column] = 1;
    if (specs.mouse.shape[2]) look.forEach((value, i) => (mouse[2 * row + i] = value));
  }
  return { keyboard, mouse };
}

// The next chunk is asked for when what is shown will last as long as computing it took, and not earlier.

let lasting = 0;

function ask() {
  if (!ready || paused || computing) return;
  if ((frames.length / world.fps) * 1000 > lasting * 1.2 + 20) return;
  computing = true;
  asked = performance.now();
  worker.postMessage({ do: "chunk", ...rows() });
}

function show(now) {
  requestAnimationFrame(show);
  ask();
  if (paused || !frames.length || now < due) return;
  const frame = frames.shift();
  pen.putImageData(frame.image, 0, 0);
  if (frame.asked) $("delay").textContent = `${Math.round(now - frame.asked)} ms`;
  due = Math.max(due + 1000 / world.fps, now - 1000 / world.fps);
  walked++;
  shownTimes.push(now);
  while (now - shownTimes[0] > 2000) shownTimes.shift();
  const steps = shownTimes.length - 1;
  if (steps > 0) $("fps").textContent = `${((1000 * steps) / (now - shownTimes[0])).toFixed(1)} of ${world.fps}`;
  $("seconds").textContent = (walked / world.fps).toFixed(1);
  view.dataset.frames = walked;
}

function unpack(pixels, count) {
  const each = world.height * world.width;
  return Array.from({ length: count }, (_, number) => {
    const out = new ImageData(world.width, world.height);
    for (let i = 0, from = number * each * 3; i < each; i++) {
      out.data[4 * i] = pixels[from++];
      out.data[4 * i + 1] = pixels[from++];
      out.data[4 * i + 2] = pixels[from++];
      out.data[4 * i + 3] = 255;
    }
    return { image: out };
  });
}

// WebGPU pays for large worlds; a small one is faster by wasm, and every browser has that.
worker.onerror = (event) => say(`The stream failed: ${event.message ?? "its worker cannot be loaded"}`);
worker.onmessage = ({ data }) => {
  if (data.stream !== undefined && data.stream !== stream) return data.is === "committed" && (computing = false);
  if (data.is === "progress") say(`Loading ${data.what}…`);
  else if (data.is === "error") say(`The stream failed: ${data.text}`);
  else if (data.is === "loaded") {
    $("backend").textContent = data.backend;
    choose(picture);
  } else if (data.is === "started") {
    say("");
    ready = true;
    computing = false;
    frames = [];
    walked = 0;
  } else if (data.is === "frames") {
    const batch = unpack(data.pixels, data.frames);
    if (batch.length) batch[0].asked = asked;
    frames.push(...batch);
    $("chunk").textContent = `${Math.round(data.milliseconds)} ms`;
  } else if (data.is === "committed") {
    lasting = data.milliseconds;
    computing = false;
    view.dataset.milliseconds = lasting;
    ask();
  }
};

async function choose(source) {
  picture = source;
  say("Looking at the picture…");
  const bitmap = await createImageBitmap(await (await fetch(source)).blob()).catch(() => null);
  if (!bitmap) return say("That is no picture that this browser can read.");
  const canvas = new OffscreenCanvas(world.width, world.height), draw = canvas.getContext("2d");
  const scale = Math.max(world.width / bitmap.width, world.height / bitmap.height);
  const [w, h] = [bitmap.width * scale, bitmap.height * scale];
  draw.imageSmoothingQuality = "high";
  draw.drawImage(bitmap, (world.width - w) / 2, (world.height - h) / 2, w, h);
  const { data } = draw.getImageData(0, 0, world.width, world.height);
  image = new Float32Array(world.width * world.height * 3);
  for (let i = 0; i < image.length; i++) image[i] = data[4 * Math.floor(i / 3) + (i % 3)] / 127.5 - 1;
  begin();
}

function begin() {
  ready = false;
  stream++;
  worker.postMessage({ do: "start", stream, image, seed: Number($("seed").value) });
}

function restart() {
  if (!image) return;
  ready = false;
  stream++;
  worker.postMessage({ do: "restart", stream, seed: Number($("seed").value) });
}

function pause() {
  paused = !paused;
  due = 0;
  $("pause").textContent = paused ? "Go on" : "Pause";
}

for (const source of world.pictures) {
  const button = document.createElement("button"), thumb = new Image();
  thumb.src = source;
  thumb.alt = `start from ${source.split("/").pop()}`;
  button.append(thumb);
  button.addEventListener("click", () => (choose(source), view.focus()));
  $("gallery").append(button);
}
$("pause").addEventListener("click", pause);
$("restart").addEventListener("click", restart);
$("full").addEventListener("click", () => $("stage").requestFullscreen?.());
$("seed").addEventListener("change", restart);
const own = (file) => file && choose(URL.createObjectURL(file));
$("file").addEventListener("change", (event) => own(event.target.files[0]));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => (event.preventDefault(), own(event.dataTransfer.files[0])));
addEventListener("paste", (event) => own(event.clipboardData.files[0]));

worker.postMessage({ do: "load", backend: chosen === "webgpu" || chosen === "wasm" ? chosen : await backend() });
requestAnimationFrame(show);

async function backend() {
  const small = world.width * world.height <= 128 * 192;
  if (small || !navigator.gpu) return "wasm";
  return (await navigator.gpu.requestAdapter().catch(() => null)) ? "webgpu" : "wasm";
}
