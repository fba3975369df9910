// The stream itself, away from the page's thread: a port of mgjax/world.py's chunk over the four ONNX programs.
//
// In:  {do: "load", backend}, {do: "start", image, seed}, {do: "chunk", keyboard, mouse, noise?}
// Out: {is: "progress", what}, {is: "loaded", backend}, {is: "started"},
//      {is: "frames", pixels, frames, position, milliseconds}, {is: "committed"}, {is: "error", text}

let ort, world, sessions, weights;
let start, state, cache, random, stream = 0;

const base = new URL(".", self.location.href);
const arrays = { float32: Float32Array, int32: Int32Array, uint32: Uint32Array, uint8: Uint8Array };
const size = (shape) => shape.reduce((a, b) => a * b, 1);
const tensor = ({ dtype, shape }, data) => new ort.Tensor(dtype, data ?? new arrays[dtype](size(shape)), shape);
const zeros = (specs) => Object.fromEntries(Object.entries(specs).map(([name, spec]) => [name, tensor(spec)]));

async function bytes(name) {
  const answer = await fetch(new URL(name, base));
  if (!answer.ok) throw new Error(`${name} cannot be loaded: ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function load({ backend }) {
  world = await (await fetch(new URL("world.json", base))).json();
  if (world.format !== "mgjax page 1") throw new Error(`world.json is of another format: ${world.format}`);
  self.postMessage({ is: "progress", what: "weights" });
  weights = await bytes("weights.bin");
  const runtime = new URL(world.runtime, base).href;
  const wanted = backend ?? "wasm";
  ort = await import(`${runtime}ort.${wanted}.bundle.min.mjs`);
  ort.env.wasm.wasmPaths = runtime;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  ort.env.logLevel = "error";
  sessions = {};
  for (const name of Object.keys(world.programs)) {
    self.postMessage({ is: "progress", what: name });
    sessions[name] = await ort.InferenceSession.create(await bytes(`${name}.onnx`), {
      executionProviders: [wanted],
      externalData: [{ path: "weights.bin", data: weights }],
      graphOptimizationLevel: "all",
    });
  }
  weights = null;
  self.postMessage({ is: "loaded", backend: wanted });
}

async function run(name, inputs) {
  const session = sessions[name];
  const feed = Object.fromEntries(session.inputNames.map((key) => [key, inputs[key]]));
  const made = await session.run(feed);
  return Object.fromEntries(Object.entries(made).map(([key, value]) => [key.slice("out/".length), value]));
}

async function begin({ image, seed }) {
  const { inputs } = world.programs.start;
  start = await run("start", { image: tensor(inputs.image, image) });
  restart({ seed });
}

function restart({ seed }) {
  const outputs = world.programs.commit.outputs;
  state = { ...zeros(outputs), ...start };
  const { pixels, ...decoder } = world.programs.decode.outputs;
  cache = zeros(decoder);
  random = gaussians(seed >>> 0);
  self.postMessage({ is: "started", stream });
}

async function chunk({ keyboard, mouse, noise }) {
  const began = performance.now();
  const { x: spec, keyboard: keys, mouse: look } = world.programs.denoise.inputs;
  const rows = { keyboard: tensor(keys, keyboard), mouse: tensor(look, mouse) };
  const count = size(spec.shape), levels = world.noise_levels;
  let clean = new Float32Array(count), drawn = 0;
  const draw = () => (noise ? noise.subarray(count * drawn, count * ++drawn) : random(count));
  for (let step = 0; step < levels.length; step++) {
    const fresh = draw();
    const sigma = Math.fround(levels[step]), kept = step ? Math.fround(1 - sigma) : 0, added = step ? sigma : 1;
    const noisy = clean.map((value, i) => Math.fround(kept * value) + Math.fround(added * fresh[i]));
    const timestep = tensor({ dtype: "float32", shape: [1, 1] }, Float32Array.of(Math.fround(world.timesteps * sigma)));
    const { velocity } = await run("denoise", { ...state, ...rows, x: tensor(spec, noisy), timestep });
    const predicted = velocity.data;
    clean = noisy.map((value, i) => value - Math.fround(sigma * predicted[i]));
  }
  const latents = tensor(spec, clean);
  const made = await run("decode", { ...cache, latents, position: state.position });
  const { pixels, ...decoder } = made;
  cache = decoder;
  const first = state.position.data[0] === 0, per = world.frames_per_latent;
  const total = pixels.dims[1], skipped = first ? per - 1 : 0, pixelsEach = size(pixels.dims.slice(2));
  const shown = pixels.data.slice(skipped * pixelsEach);
  self.postMessage(
    { is: "frames", stream, pixels: shown, frames: total - skipped, milliseconds: performance.now() - began },
    [shown.buffer],
  );
  const remembered = world.programs.commit.inputs.noise; // a world that keeps its past in noise
  const more = remembered ? { noise: tensor(remembered, Float32Array.from(draw())) } : {};
  state = { ...state, ...(await run("commit", { ...state, ...rows, ...more, latents })) };
  self.postMessage({ is: "committed", stream, milliseconds: performance.now() - began, position: state.position.data[0] });
}

// Normal numbers from a seed: SplitMix32 and Box-Muller. Not JAX's: a page's stream is its own.
function gaussians(seed) {
  let word = seed;
  const uniform = () => {
    word = (word + 0x9e3779b9) | 0;
    let x = word ^ (word >>> 16);
    x = Math.imul(x, 0x21f0aaad);
    x = Math.imul(x ^ (x >>> 15), 0x735a2d97);
    return ((x ^ (x >>> 15)) >>> 0) / 2 ** 32;
  };
  return (count) => {
    const values = new Float32Array(count);
    for (let i = 0; i < count; i += 2) {
      const radius = Math.sqrt(-2 * Math.log(1 - uniform())), angle = 2 * Math.PI * uniform();
      values[i] = radius * Math.cos(angle);
      if (i + 1 < count) values[i + 1] = radius * Math.sin(angle);
    }
    return values;
  };
}

const actions = { load, start: begin, restart, chunk };
let queue = Promise.resolve();
self.onmessage = ({ data }) => {
  queue = queue.then(async () => {
    try {
      if (data.stream !== undefined) stream = data.stream;
      await actions[data.do](data);
    } catch (error) {
      self.postMessage({ is: "error", text: error.message ?? String(error) });
    }
  });
};
