"""The page of `mgjax play` in a real browser (headless Chromium, driven by Playwright)."""

import asyncio
import base64
import io
import shutil
import time

import numpy as np
import pytest
from PIL import Image
from serving import serving, until

import mgjax
from mgjax import loading

playwright = pytest.importorskip("playwright.sync_api", reason="a browser is driven by playwright (extra `dev`)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    model = mgjax.load("rooms")
    with serving(model, loading.pictures(model.cfg), tmp_path_factory.mktemp("logs"), places=3, absent=20.0) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, served):
    """A page that plays."""
    server, port = served
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    page = context.new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(f"http://127.0.0.1:{port}/")
    until(lambda: seen(page, "frames") > 3, 30)
    yield page
    assert page.errors == []
    context.close()
    for guest in [*server.guests.values()]:
        guest.gone = 0.0 if guest.line is None else guest.gone


def seen(page, what):
    return int(page.get_attribute("#view", f"data-{what}") or 0)


def look(page):
    """What the canvas shows."""
    data = page.evaluate("document.getElementById('view').toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))).convert("RGB")).astype(int)


def test_keys_alone_walk_pause_save_load_and_rewind(page, served):
    server, _ = served
    page.focus("#view")
    page.keyboard.press("KeyP")
    until(lambda: page.inner_text("#message") == "Paused")
    time.sleep(0.5)
    computed, still = server.pool.chunks, look(page)
    time.sleep(0.5)
    assert server.pool.chunks == computed
    page.keyboard.press("KeyK")
    until(lambda: page.is_enabled("#load"))

    page.keyboard.press("KeyP")
    page.keyboard.down("KeyW")
    until(lambda: seen(page, "input") > 0)  # a receipt came, and its frame was shown
    page.keyboard.down("ArrowRight")
    time.sleep(1.5)
    page.keyboard.up("KeyW")
    page.keyboard.up("ArrowRight")
    moved = look(page)
    assert np.abs(moved - still).mean() > 10
    assert page.inner_text("#delay").endswith(" ms")

    epoch = seen(page, "epoch")
    page.keyboard.press("KeyL")
    until(lambda: seen(page, "epoch") == epoch + 1)
    # The frame after the saved one, of a player who does nothing, is like it.
    page.keyboard.press("KeyP")
    until(lambda: page.inner_text("#message") == "Paused")
    assert np.abs(look(page) - still).mean() < np.abs(moved - still).mean() / 2

    page.evaluate("(() => { const r = document.getElementById('rewind'); r.value = r.min;"
                  "r.dispatchEvent(new Event('input')); r.dispatchEvent(new Event('change')); })()")  # fmt: skip
    until(lambda: page.get_attribute("#rewind", "max") == page.get_attribute("#rewind", "min"))


@pytest.mark.slow
def test_a_cut_line_is_taken_up_with_the_same_stream(page, served):
    server, _ = served
    key = page.evaluate("sessionStorage.getItem('mgjax stream')")
    before = server.guests[key].player.chunk
    page.context.set_offline(True)
    future = asyncio.run_coroutine_threadsafe(server.guests[key].line.socket.close(1012), server._loop)
    future.result(5)
    until(lambda: "cut" in page.inner_text("#message"))
    page.context.set_offline(False)
    until(lambda: server.guests[key].line is not None and not server.guests[key].player.paused, 20)
    frames = seen(page, "frames")
    until(lambda: seen(page, "frames") > frames + 10)
    assert server.guests[key].player.chunk > before
    assert page.inner_text("#message") == ""


@pytest.mark.slow
def test_a_fork_opens_in_a_second_tab(page, served):
    server, _ = served
    with page.context.expect_page() as opened:
        page.click("#fork")
    other = opened.value
    until(lambda: seen(other, "frames") > 3, 20)
    assert len([guest for guest in server.guests.values() if guest.line is not None]) == 2
    frames = seen(page, "frames")
    until(lambda: seen(page, "frames") > frames + 5)


@pytest.mark.slow
def test_pictures_by_gallery_and_by_drop(page):
    first = look(page)
    page.click("#gallery button:nth-child(4)")
    until(lambda: page.get_attribute("#gallery button:nth-child(4)", "aria-pressed") == "true")
    time.sleep(0.6)
    assert np.abs(look(page) - first).mean() > 10
    with io.BytesIO() as file:
        Image.new("RGB", (300, 200), (200, 30, 30)).save(file, "PNG")
        data = list(file.getvalue())
    epoch = seen(page, "epoch")
    page.evaluate(
        """(data) => {
        const moved = new DataTransfer();
        moved.items.add(new File([new Uint8Array(data)], "own.png", {type: "image/png"}));
        dispatchEvent(new DragEvent("drop", {dataTransfer: moved, cancelable: true}));
        }""",
        data,
    )
    until(lambda: seen(page, "epoch") == epoch + 1)
    until(lambda: page.get_attribute("#gallery button:nth-child(4)", "aria-pressed") == "false")


@pytest.mark.slow
def test_the_mouse_turns_the_view(page):
    page.click("#view")
    time.sleep(0.3)
    assert page.evaluate("document.pointerLockElement?.id") == "view"
    page.keyboard.press("KeyP")
    until(lambda: page.inner_text("#message") == "Paused")
    page.keyboard.press("KeyP")
    before = look(page)
    for step in range(40):
        page.mouse.move(300 + 12 * step, 300)
        time.sleep(0.03)
    assert np.abs(look(page) - before).mean() > 8


@pytest.mark.slow
def test_a_phone(browser, served):
    _, port = served
    context = browser.new_context(viewport={"width": 375, "height": 667}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{port}/")
    until(lambda: seen(page, "frames") > 3, 30)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    box = page.locator("#pad button").first.bounding_box()
    assert min(box["width"], box["height"]) >= 40
    before = look(page)
    page.locator("#pad button").first.dispatch_event("pointerdown")
    time.sleep(1.5)
    assert np.abs(look(page) - before).mean() > 4
    context.close()
