"""`mgjax play`: walk through a world in the browser, live."""

from __future__ import annotations

from pathlib import Path

from mgjax.config import AttentionChoice, DecoderChoice, DTypeChoice
from mgjax.errors import InputError


def main(
    weights: str | None = None,
    model: str | None = None,
    picture: tuple[Path, ...] = (),
    host: str = "127.0.0.1",
    port: int = 7860,
    players: int = 4,
    rewind: int = 120,
    logs: Path | None = None,
    browser: bool = True,
    random_weights: bool = False,
    decoder: DecoderChoice = "auto",
    dtype: DTypeChoice = "auto",
    attention: AttentionChoice = "auto",
) -> int:
    """Serves a page on which a world is walked through by keys, mouse, gamepad or fingers. Ctrl-C ends it.

    Without --weights the world rooms is played, which comes with mgjax. Needs the extra `play`.

    Args:
        weights: as of `mgjax generate`: a folder of weights or an artefact, or OWNER/NAME at Hugging Face.
        model: whose weights, where there are several; without --weights rooms or nano.
        picture: pictures to begin from, the first of them at once (default: those that come with the world).
        host: where to listen. Anything but this machine itself makes a token, which the printed link carries.
        port: of the page; 0 takes a free one.
        players: who can play at a time, all on this device.
        rewind: how many chunks a player can go back, as far as memory allows.
        logs: keep the logs of all streams in this folder, for `mgjax replay` (default: they go with the server).
        browser: open the page.
        random_weights: of a preset, to try a machine without its weights; what is seen is noise.
        decoder: vae, the full video decoder, or taehv, the small fast one; auto is vae where its weights are.
        dtype: of the computation; auto is bfloat16 on accelerators, and on CPUs that have it for large worlds.
        attention: as of `mgjax generate`.
    """
    import secrets
    import socket
    import tempfile
    import webbrowser

    from rich.console import Console

    from mgjax import loading

    try:
        import uvicorn

        from mgjax.play.protocol import LARGEST_MESSAGE
        from mgjax.play.server import LOOPBACK, PlayConfig, Server
    except ImportError as error:
        raise InputError(
            f"playing needs the extra `play`, pip install 'mgjax[play]' ({error.name} is missing)"
        ) from None

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    name = weights or model or loading.DEFAULT
    found = loading.find(name, model=model, random_weights=random_weights)
    world = found.choose(dtype, attention, decoder)
    pictures = tuple(picture) or tuple(loading.pictures(found.cfg))
    for path in pictures:
        if not path.is_file():
            raise InputError(f"the picture {path} does not exist")
    if len({path.stem for path in pictures}) != len(pictures):
        raise InputError("two of the pictures have the same name")
    if not 1 <= players <= 64:
        raise InputError(f"--players {players}: 1 to 64 can play")
    if logs is not None:
        logs.mkdir(parents=True, exist_ok=True)
    token = "" if host in LOOPBACK else secrets.token_urlsafe(18)
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"port {port} of {host} cannot be had: {reason}") from None
    shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    link = f"http://{f'[{shown}]' if ':' in shown else shown}:{listener.getsockname()[1]}/"
    link += f"#token={token}" if token else ""

    def load():
        loading.use_compilation_cache()
        return found.load(world)

    with tempfile.TemporaryDirectory(prefix="mgjax-play-") as folder:
        cfg = PlayConfig(
            logs=logs or Path(folder), host=host, token=token, places=players, rewind=rewind, pictures=pictures,
            note=_note(found),
        )  # fmt: skip
        server = Server(load, cfg)
        options = uvicorn.Config(
            server.app(), log_level="warning", access_log=False, ws="websockets-sansio", server_header=False,
            ws_max_size=LARGEST_MESSAGE, ws_per_message_deflate=False, timeout_graceful_shutdown=3,
        )  # fmt: skip
        console.print(f"{found.cfg.name}: [link={link}]{link}[/link]   (Ctrl-C ends it)")
        if browser:
            webbrowser.open(link)
        uvicorn.Server(options).run(sockets=[listener])
    if server.pool is None and server.failure:
        raise InputError(server.failure)
    return 0


def _note(found) -> str:
    notes = {
        "rooms": "A small network's memory of a Doom level of four rooms. It obeys; where one stands it loses in time.",
        "nano": "A toy: discs that the mouse pans and a square that the keys move.",
    }
    if found.random:
        return "Random weights: this shows that it runs, and nothing else."
    return notes.get(found.cfg.name, "")
