import dataclasses
import re
from pathlib import Path

import jax
import pytest

from mgjax import train_config
from mgjax.cli import main
from mgjax.commands._config import read_config
from mgjax.config import LinearConfig
from mgjax.errors import InputError
from mgjax.models import dit
from mgjax.train.run.plan import shapes_before
from mgjax.train.stages import make_stage
from mgjax.train_config import LoRAConfig, fingerprint

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
NANO = next(path for path in CONFIGS if path.stem == "nano")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_makes_its_stages(path):
    """Shapes only: nothing of the released size is ever made here."""
    cfg = read_config(path)
    for name, stage_cfg in cfg.stages().items():
        stage = make_stage(name, cfg)
        assert stage.batch_spec(stage_cfg.batch)
        if name in ("vae", "foundation"):
            given = shapes_before(cfg, name) if isinstance(cfg.world.vae, LinearConfig) else {}
            state = jax.eval_shape(stage.init, jax.random.key(0), given)
            assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) > 10_000


def test_the_universal_ladder_has_the_papers_numbers():
    cfg = read_config(next(path for path in CONFIGS if path.stem == "universal"))
    assert (cfg.world.height, cfg.world.width, cfg.world.dit.window) == (352, 640, 6)
    stage = cfg.foundation
    assert (4 * (stage.latents - 1) + 1, stage.batch, stage.optimizer.learning_rate, stage.steps) == (
        57,
        256,
        2e-5,
        120_000,
    )
    assert (cfg.few_step.steps, cfg.self_forcing.steps, cfg.self_forcing.optimizer.learning_rate) == (6000, 4000, 6e-6)
    layers = dataclasses.replace(cfg.world.dit, num_action_layers=30)
    count = sum(
        leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda key: dit.init(key, layers), jax.random.key(0)))
    )
    assert 1.7e9 < count < 1.9e9


def test_overrides_reach_every_depth():
    cfg = read_config(
        NANO, ("foundation.steps=7", "mesh.fsdp=4", "causal.lora.rank=3", "self_forcing.score_range=0.1,0.9")
    )
    assert (cfg.foundation.steps, cfg.mesh.fsdp, cfg.causal.lora.rank) == (7, 4, 3)
    assert cfg.self_forcing.score_range == (0.1, 0.9)
    assert read_config(NANO, ("self_forcing.ema=None",)).self_forcing.ema is None


@pytest.mark.parametrize("turn", [1, -1])
def test_overrides_that_fit_only_together_are_taken_together(turn):
    """In any order: a batch of 5 does not split into the config's micro-batches, nor its batch into 5; and streams that
    grow longer want a teacher that sees further."""
    overrides = ("foundation.batch=5", "foundation.accumulate=5", "world.dit.dim=60", "world.dit.num_heads=5")
    cfg = read_config(NANO, overrides[::turn])
    assert (cfg.foundation.batch, cfg.foundation.accumulate) == (5, 5)
    assert (cfg.world.dit.dim, cfg.world.dit.num_heads) == (60, 5)
    cfg = read_config(NANO, ("long.max_latents=15", "foundation.starts=9")[::turn])
    assert (cfg.long.max_latents, cfg.foundation.starts) == (15, 9)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_an_override_leaves_all_else_as_it_is(config):
    cfg = read_config(config)
    assert read_config(config, (f"run.keep={cfg.run.keep}",)) == cfg


def test_parts_are_switched_on_and_off():
    cfg = read_config(NANO, ("taehv=None", "vae.crop=None", "causal.lora.alpha=2", "data.weights="))
    assert cfg.taehv is None
    assert cfg.vae.crop is None
    assert cfg.causal.lora == LoRAConfig(alpha=2.0)
    assert cfg.data.weights == ()
    assert read_config(NANO, ("vae.crop=16,24", "mesh.fsdp=-1")).vae.crop == (16, 24)


def _refused(capsys, *overrides: str) -> str:
    """What tyro writes about `overrides`, out of its box."""
    with pytest.raises(SystemExit) as stop:
        read_config(NANO, overrides)
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.replace("\u2502", " ").replace("|", " ").split())


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ("foundation.stepz=7", "Unrecognized options: --foundation.stepz, 7"),
        ("foundation.stepz=7", "Perhaps you meant: --foundation.steps INT"),
        ("foundation.steps=many", "Error parsing --foundation.steps: invalid literal for int() with base 10: 'many'"),
        ("foundation.dtype=int8", "invalid choice 'int8' for argument '--foundation.dtype'"),
        ("foundation.batch=8,9", "Error parsing --foundation.batch: invalid literal for int()"),
        ("foundation.accumulate=3", "Error parsing foundation: a batch of 8 clips does not split into 3"),
        ("foundation.batch=7 foundation.accumulate=5", "Error parsing foundation: a batch of 7"),
        ("world.dit.dim=7", "Error parsing world.dit: dim 7 does not split into"),
        ("name.x=1", "Unrecognized options: --name.x, 1"),
        ("mesh=None", "Unrecognized options: --mesh, None"),
        ("vae=None vae.steps=3", "Unrecognized options: --vae.steps, 3"),
        ("vae.steps=3 vae=None", "Unrecognized options: --vae.steps, 3"),
        (
            "few_step.guidance=2 few_step.method=ode few_step.own_past=0",
            "stage causal never sees: set causal.action_dropout",
        ),
        ("few_step.guidance=2", "method=flow has no teacher that could be guided"),
        ("few_step.method=ode", "own_past is of method=flow, and few_step.method is ode"),
        ("long.guidance=2", "stage foundation never sees: set foundation.action_dropout"),
        ("foundation.starts=2", "its teacher sees no more than 2: set foundation.starts"),
        ("vae.optimizer.decay=1.5", "between 0 and 1"),
        ("world.sampler.context=1.5", "is not within [0, 1)"),
    ],
)
def test_wrong_overrides_are_told_of(capsys, overrides, sentence):
    assert sentence in _refused(capsys, *overrides.split())


def test_an_override_without_a_value_is_one_sentence():
    with pytest.raises(InputError, match="'steps' is not FIELD=VALUE"):
        read_config(NANO, ("steps",))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("vae.frames=9", "do not train every weight of this autoencoder: give 4 n + 1 frames, at least 13"),
        ("taehv.frames=16", "do not train every weight"),
        ("long.ratio=3", "would not see streams of every age"),
    ],
)
def test_stages_that_would_not_train_all_they_should_are_refused(override, sentence):
    cfg = read_config(NANO, (override,))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make_stage(override.partition(".")[0], cfg)


@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_stage_that_does_not_fit_its_world_is_one_sentence(mgjax_process, command):
    config = next(path for path in CONFIGS if path.stem == "rooms")
    result = mgjax_process(command, config, "--stage", "vae", "world.vae.refine_layers=0")
    assert result.returncode == 2
    assert f"mgjax {command}: stage vae: the pictures of rooms are coded linearly" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "there is no config"),
        ("x = 1", "has no function config()"),
        ("def config(): return 3", "does not return a TrainConfig"),
        ("def config(:", "cannot be used"),
        ("import nowhere_at_all", "cannot be used"),
    ],
)
def test_a_wrong_config_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=re.escape(sentence)):
        read_config(path)


@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_stage_that_is_not_there_ends_with_2(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, str(NANO), "--stage", "critic"])
    assert end.value.code == 2
    assert "has no stage 'critic'; it has vae, taehv, foundation" in capsys.readouterr().err


def test_a_stage_without_the_one_before_it_ends_with_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", str(NANO), "--stage", "causal", "--out", str(tmp_path)])
    assert end.value.code == 2
    assert "starts from stage vae, which is not trained" in capsys.readouterr().err


def test_the_fingerprint_knows_what_decides_the_numbers():
    cfg = read_config(NANO)

    def of(*overrides):
        return fingerprint(read_config(NANO, overrides), "foundation")

    free = (
        "foundation.steps=9", "mesh.fsdp=2", "run.save_every=1", "causal.seed=4", "foundation.accumulate=4",
        "foundation.attention=tiled", "data.num_threads=9", "data.validation_path=elsewhere", "weights=elsewhere",
    )  # fmt: skip
    assert all(of(override) == fingerprint(cfg, "foundation") for override in free)
    decisive = ("foundation.seed=1", "foundation.batch=4", "data.seed=2", "world.dit.ffn_dim=96")
    assert len({of(override) for override in decisive} | {of()}) == 5
    assert of("data.path=here") == of("data.path=there") != of()  # a folder that was moved
    mixed = of("data.path=a", "data.also=b,c")
    assert of("data.path=d", "data.also=e,f") == mixed != of("data.path=a", "data.also=b,c", "data.weights=2,1,1")
    assert tuple(cfg.stages()) == train_config.STAGES


def test_what_refines_a_code_wants_one(mgjax_process):
    config = next(path for path in CONFIGS if path.stem == "rooms")
    result = mgjax_process("train", config, "--stage", "vae", "data.path=none", "--out", "unused")
    assert result.returncode == 2
    assert "stage vae refines a linear code, which `mgjax data code` fits" in result.stderr
    plan = mgjax_process("plan", config, "--stage", "vae")
    assert plan.returncode == 0
    assert "vae" in plan.stdout
