"""The page without a server: its frames are Python's, and it plays (docs/export.md)."""

import functools
import http.server
import shutil
import threading
import time

import jax
import numpy as np
import pytest
from jax.extend import core

import mgjax
from mgjax.config import Settings
from mgjax.errors import InputError
from mgjax.export import onnx, web
from mgjax.io.actions import load_actions
from mgjax.stream.rows import chunk_rows, to_chunks
from mgjax.types import Actions
from mgjax.world import World

CHUNKS = 20

# The stream in the page's worker, with the noise that JAX drew: [frames of each chunk] as base64.
STREAM = """
async ({picture, keyboard, mouse, noise, chunks, size}) => {
  const floats = (text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const worker = new Worker("worker.js", {type: "module"});
  const next = (wanted) => new Promise((resolve, reject) => {
    worker.onmessage = ({data}) => data.is === wanted ? resolve(data) : data.is === "error" && reject(data.text);
  });
  const ask = (wanted, message) => { const answer = next(wanted); worker.postMessage(message); return answer; };
  await ask("loaded", {do: "load", backend: "wasm"});
  await ask("started", {do: "start", image: floats(picture), seed: 0});
  const rows = [floats(keyboard), floats(mouse), floats(noise)], made = [], milliseconds = [];
  for (let i = 0; i < chunks; i++) {
    const [k, m, n] = rows.map((all) => all.slice(i * all.length / chunks, (i + 1) * all.length / chunks));
    const frames = next("frames"), done = frames.then(() => next("committed"));
    worker.postMessage({do: "chunk", keyboard: k, mouse: m, noise: n});
    const {pixels} = await frames;
    milliseconds.push((await done).milliseconds);
    let text = "";
    for (const value of pixels) text += String.fromCharCode(value);
    made.push(btoa(text));
  }
  return {made, milliseconds};
}
"""


@pytest.fixture(scope="module", params=["rooms", "nano"])
def model(request):
    return mgjax.load(request.param)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    pytest.importorskip("jax2onnx", reason="the page is made by jax2onnx (extra `web`)")
    folder = tmp_path_factory.mktemp("web") / "page"
    vendor = shutil.which("npm") is not None
    if not vendor:
        pytest.skip("onnxruntime-web comes by npm, which is not installed")
    web.write_web(folder, model.world, model.params, [("pattern", _picture(model.cfg))], note="A toy.", vendor=True)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    playwright = pytest.importorskip("playwright.sync_api", reason="a browser is driven by playwright (extra `dev`)")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on this machine")
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 900, "height": 900})
        page.address = f"http://127.0.0.1:{server.server_address[1]}/index.html"
        page.goto(page.address)
        yield page
        browser.close()
    server.shutdown()
    server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def _picture(cfg):
    y, x = np.mgrid[: cfg.height, : cfg.width] / cfg.height
    return np.stack([np.sin(5 * x), np.cos(4 * y), ((8 * x + 8 * y) // 1 % 2) - 0.5], -1).astype(np.float32)


@pytest.mark.slow
def test_the_browsers_frames_are_pythons(model, page):
    import base64

    cfg = model.cfg
    world = World(cfg, Settings("float32", model.world.settings.decoder, "xla"))
    keyboard, mouse = load_actions("bench", cfg, chunk_rows(cfg, CHUNKS), 1)
    rows = to_chunks(cfg, Actions(keyboard[None], mouse[None]))
    # The picture as the page reads it from its PNG, so that both begin with the same numbers.
    picture = np.float32(np.uint8(np.round((_picture(cfg) + 1) * 127.5)) / 127.5 - 1)
    run, params = world.programs(), model.params
    condition = run.encode(world, params, picture[None])
    state = run.begin(world, params, condition, jax.random.split(jax.random.key(3), 1))
    step = jax.jit(World.chunk_step, static_argnums=0)
    expected, noises = [], []
    for i in range(CHUNKS):
        noises.append(np.asarray(world._draw(state)))
        frames, state = step(world, params, state, Actions(rows.keyboard[i], rows.mouse[i]), noises[-1])
        expected.append(np.asarray(frames.pixels[0]))

    def text(array):
        return base64.b64encode(np.ascontiguousarray(array, np.float32).tobytes()).decode()

    answer = page.evaluate(
        STREAM,
        {
            "picture": text(picture),
            "keyboard": text(rows.keyboard),
            "mouse": text(rows.mouse),
            "noise": text(np.stack(noises)),
            "chunks": CHUNKS,
            "size": cfg.height * cfg.width * 3,
        },
    )
    print("chunk, milliseconds:", [round(value) for value in answer["milliseconds"]])
    worst = []
    for number, (made, frames) in enumerate(zip(answer["made"], expected, strict=True)):
        frames = frames[3:] if number == 0 else frames
        found = np.frombuffer(base64.b64decode(made), np.uint8).reshape(frames.shape)
        worst.append(np.abs(found.astype(int) - frames).max())
    print("largest difference of a chunk, of 255:", worst)
    # Both sum in float32 and in other orders, which is 1e-5 a chunk; rounding to a byte makes one of it. Twenty chunks
    # of feedback through the cache may let it grow, but not to what a wrong row or slot would make, which is tens.
    assert max(worst) <= 2


@pytest.mark.slow
def test_the_page_plays_by_keyboard_alone(model, page):
    def frames():
        return int(page.get_attribute("#view", "data-frames") or 0)

    page.goto(page.address)
    until(lambda: frames() > 20, 120)
    assert page.inner_text("#message") == ""
    begun, first = time.monotonic(), frames()
    page.wait_for_timeout(20_000)
    rate = (frames() - first) / (time.monotonic() - begun)
    print(f"{model.cfg.name}: {rate:.2f} of {model.cfg.fps} frames a second over 20 s")
    page.keyboard.down("KeyW")
    until(lambda: page.locator("#held .on").all_inner_texts() == ["W"])
    before = frames()
    until(lambda: frames() > before + 36, 60)
    page.keyboard.up("KeyW")
    page.keyboard.press("KeyP")
    assert page.inner_text("#pause") == "Go on"
    paused = frames()
    page.wait_for_timeout(600)
    assert frames() == paused
    page.keyboard.press("KeyP")
    page.keyboard.press("KeyR")
    until(lambda: 0 < frames() < before, 60)


def until(holds, seconds=10):
    """Waits; the page's own policy forbids the strings of code that playwright would wait with."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_no_program_of_a_page_holds_what_only_jax_knows(model):
    """Looked at before jax2onnx, so that it is seen where that is not installed."""
    world = World(model.cfg, Settings("float32", model.world.settings.decoder, "xla"))
    params = jax.tree.map(np.float32, model.params)
    for call, inputs in web._programs(world, params).values():
        closed = jax.make_jaxpr(call)(inputs)
        found = jax.make_jaxpr(functools.partial(onnx.evaluate, closed))(jax.tree.leaves(inputs))
        names = _primitives(found.jaxpr)
        assert names.isdisjoint(
            {"platform_index", "optimization_barrier", "custom_vjp_call", "custom_jvp_call", "scatter"}
        )
        assert {"dot_general", "conv_general_dilated"} & names


def _primitives(jaxpr):
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for inner in core.jaxprs_in_params(equation.params):
            names |= _primitives(inner)
    return names


def test_a_page_needs_a_picture_and_an_empty_folder(tmp_path, tiny):
    world = World(tiny, Settings("float32"))
    with pytest.raises(InputError, match="needs a picture"):
        web.write_web(tmp_path / "page", world, {}, [])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not empty"):
        web.write_web(tmp_path, world, {}, [("a", np.zeros((2, 2, 3)))])
    with pytest.raises(InputError, match="not empty"):
        web.write_web(tmp_path, world, {}, [("a", np.zeros((2, 2, 3)))], overwrite=True)
    assert (tmp_path / "file").exists()
