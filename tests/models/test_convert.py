"""Released names and shapes against this project's own parameters; every tensor there and back, bit for bit."""

import copy
import dataclasses
import json
import math
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from mgjax import checkpoint
from mgjax.config import CLIPConfig, TAEHVConfig, VAEConfig, WorldConfig, preset
from mgjax.errors import InputError
from mgjax.io.tensors import LazyArray, TensorFile, open_tensors, write_safetensors
from mgjax.models import convert

PARAMETERS = {  # design page, section 1
    "universal": 1_619_242_304,
    "gta_drive": 1_619_238_464,
    "templerun": 1_508_715_584,
    "foundation": 1_824_405_824,
}
BF16 = np.dtype(ml_dtypes.bfloat16)


def _official(golden, name) -> dict[str, tuple[int, ...]]:
    stored = json.loads((golden / "official_keys" / f"{name}.json").read_text())
    return {tensor: tuple(shape) for tensor, shape in stored.get("tensors", stored).items()}


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_name_of_a_released_dit_is_accounted_for(golden, name):
    released = convert.released_shapes("dit", preset(name))
    assert released == _official(golden, name)
    leaves = jax.tree.leaves(convert.shapes("dit", preset(name)))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == PARAMETERS[name]


@pytest.mark.parametrize(("component", "name"), [("vae", "wan_vae"), ("clip", "clip_visual")])
def test_every_name_of_the_other_networks_is_accounted_for(golden, component, name):
    assert convert.released_shapes(component, preset("universal")) == _official(golden, name)


@pytest.mark.parametrize("name", ["universal", "gta_drive", "templerun", "foundation"])
def test_released_configs_are_the_presets(golden, name):
    world = convert.world_config_from_released((golden / "official_keys" / f"{name}.json").read_text())
    assert world.dit == preset(name).dit
    assert world.control == preset(name).control


def _golden_world(golden, folder) -> WorldConfig:
    """The world whose networks have the widths of a folder of reference tensors."""
    data = json.loads((golden / folder / "config.json").read_text())
    if folder.startswith("dit"):
        return convert.world_config_from_released(json.dumps(data))
    kind = {"vae": VAEConfig, "clip": CLIPConfig, "taehv": TAEHVConfig}[folder]
    part = {
        "vae": lambda: kind(dim=data["dim"]),
        "clip": lambda: kind(
            dim=data["dim"], num_heads=data["num_heads"], num_layers=data["num_layers"], output_dim=data["dim"]
        ),
        "taehv": lambda: kind(tuple(data["decoder_widths"]), data["encoder_width"]),
    }[folder]()
    return dataclasses.replace(preset("universal"), **{folder: part})


@pytest.mark.parametrize("folder", ["dit_universal", "dit_templerun", "vae", "clip", "taehv"])
def test_there_and_back_is_bit_exact(golden, tmp_path, folder):
    """Released file -> tree -> checkpoint -> tree -> released file."""
    component, cfg = folder.split("_")[0], _golden_world(golden, folder)
    file = open_tensors(golden / folder / "weights.safetensors")
    checkpoint.save(tmp_path / "world", cfg, {component: convert.to_tree(component, cfg, file)})
    loaded = checkpoint.load(tmp_path / "world", component)
    expected = convert.shapes(component, cfg)
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    assert all(a.shape == b.shape for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(expected), strict=True))
    back = convert.from_tree(component, checkpoint.read_config(tmp_path / "world"), loaded)
    write_safetensors(tmp_path / "back.safetensors", back)
    again = open_tensors(tmp_path / "back.safetensors")
    assert set(again.names) == set(file.names)
    for name in file.names:
        assert again.read(name).tobytes() == file.read(name).tobytes()
        assert again.shape(name) == file.shape(name)


def test_axes_go_where_the_model_reads_them(golden):
    """A linear layer is transposed; of a patch embedding the columns are row, column, channel."""
    cfg = _golden_world(golden, "dit_universal")
    file = open_tensors(golden / "dit_universal" / "weights.safetensors")
    tree = convert.to_tree("dit", cfg, file)
    kernel = tree["blocks"]["2"]["self_attention"]["q"]["kernel"].read()
    np.testing.assert_array_equal(kernel, file.read("model.blocks.2.self_attn.q.weight").T)
    patch = tree["patch"]["kernel"].read().reshape(2, 2, 36, 128)
    released = file.read("model.patch_embedding.weight")  # out, in, time, row, column
    np.testing.assert_array_equal(patch[1, 0, 35, 7], released[7, 35, 0, 1, 0])


def test_rounding_is_to_nearest_even():
    """The tie between two bfloat16 goes to the even one, and the number beside it to the nearest."""
    one_ulp = 2.0**-7
    values = np.array([1 + one_ulp / 2, 1 + 3 * one_ulp / 2, 1 + 1.001 * one_ulp / 2], np.float32)
    file = _vae_file({"conv1.bias": np.resize(values, 32)})
    rounded = convert.to_tree("vae", VAE, file, BF16)["encoder"]["moments"]["bias"]
    assert rounded.dtype == BF16
    np.testing.assert_array_equal(rounded.read()[:3].astype(np.float32), [1, 1 + 2 * one_ulp, 1 + one_ulp])


VAE = dataclasses.replace(preset("universal"), vae=VAEConfig(dim=8))


def _file(component, cfg, change=lambda arrays: None) -> TensorFile:
    """A whole released file of zeros, then changed."""
    arrays = {name: np.zeros(shape, np.float32) for name, shape in convert.released_shapes(component, cfg).items()}
    change(arrays)
    lazy = {name: LazyArray(a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()}
    return TensorFile("weights.pth", lazy)


def _vae_file(changed: dict) -> TensorFile:
    return _file("vae", VAE, lambda arrays: arrays.update(changed))


def test_a_missing_tensor_is_named():
    def drop(*names):
        return _file("vae", VAE, lambda arrays: [arrays.pop(name) for name in names])

    with pytest.raises(InputError, match=r"weights\.pth lacks tensor conv1\.bias: "):
        convert.to_tree("vae", VAE, drop("conv1.bias"))
    with pytest.raises(InputError, match=r"lacks tensor encoder\.conv1\.weight \(and 1 more\)"):
        convert.to_tree("vae", VAE, drop("conv1.bias", "encoder.conv1.weight"))


def test_an_unknown_tensor_is_named():
    with pytest.raises(InputError, match=r"unknown tensor conv3\.bias"):
        convert.to_tree("vae", VAE, _vae_file({"conv3.bias": np.zeros(1, np.float32)}))


def test_a_misshapen_tensor_is_named():
    with pytest.raises(InputError, match=r"tensor conv1\.bias .* has shape \[31\]; .* takes \[32\]"):
        convert.to_tree("vae", VAE, _vae_file({"conv1.bias": np.zeros(31, np.float32)}))
    # As many numbers in another order are another tensor.
    with pytest.raises(InputError, match=r"tensor conv1\.weight .* has shape \[32, 32\]"):
        convert.to_tree("vae", VAE, _vae_file({"conv1.weight": np.zeros((32, 32), np.float32)}))


def test_a_file_of_another_model_is_refused(golden):
    file = open_tensors(golden / "dit_templerun" / "weights.safetensors")
    with pytest.raises(InputError, match=r"lacks tensor model\."):
        convert.to_tree("dit", _golden_world(golden, "dit_universal"), file)


def test_nothing_is_read_before_a_leaf_is():
    def fail():
        raise AssertionError("read")

    lazy = {name: LazyArray(t.shape, t.dtype, fail) for name, t in _vae_file({}).tensors.items()}
    tree = convert.to_tree("vae", VAE, TensorFile("weights.pth", lazy))
    with pytest.raises(AssertionError, match="read"):
        tree["encoder"]["moments"]["bias"].read()


def test_the_text_tower_is_left_out():
    cfg = preset("nano")
    whole = convert.to_tree("clip", cfg, _file("clip", cfg))
    text = {"textual.token_embedding.weight": np.zeros((9, 4), np.float32), "log_scale": np.zeros((), np.float32)}
    assert jax.tree.structure(convert.to_tree("clip", cfg, _file("clip", cfg, lambda arrays: arrays.update(text)))) == (
        jax.tree.structure(whole)
    )


def test_a_dit_with_and_without_prefix(golden):
    cfg = _golden_world(golden, "dit_templerun")
    file = open_tensors(golden / "dit_templerun" / "weights.safetensors")
    bare = TensorFile(file.path, {name.removeprefix("model."): tensor for name, tensor in file.tensors.items()})
    names = convert.from_tree("dit", cfg, convert.to_tree("dit", cfg, bare))
    assert set(names) == set(file.names)
    assert all(array.read().tobytes() == file.read(name).tobytes() for name, array in names.items())


WRAPPERS = (
    "module.", "_orig_mod.", "model._orig_mod.", "module.model.", "_fsdp_wrapped_module.model.", "generator.",
    "model._fsdp_wrapped_module.", "model.diffusion_model.", "state_dict.model.", "net.", "dit.", "transformer.",
    "ema.a.b.",
)  # fmt: skip


def _renamed(file: TensorFile, *renames) -> TensorFile:
    return TensorFile(file.path, {rename(name): t for name, t in file.tensors.items() for rename in renames})


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("component", ["dit", "vae", "clip"])
def test_a_wrappers_prefix_is_seen_through(component, wrapper):
    cfg, expected = preset("nano"), convert.released_shapes(component, preset("nano"))
    own = _file(component, cfg, lambda arrays: [a.__iadd__(i) for i, a in enumerate(arrays.values())])
    found = convert.find(component, cfg, _renamed(own, lambda name: wrapper + name.removeprefix("model.")))
    assert found.aside == ()
    assert found.tensors.keys() == expected.keys()
    for name, tensor in found.tensors.items():
        np.testing.assert_array_equal(tensor.read(), own.read(name))


def test_wrappers_in_the_middle_of_a_name():
    cfg, middle = preset("nano"), ".blocks.1._fsdp_wrapped_module._checkpoint_wrapped_module."
    wrapped = _renamed(_file("dit", cfg), lambda name: name.replace(".blocks.1.", middle))
    assert sum("_fsdp" in name for name in wrapped.names) > 10
    assert len(convert.find("dit", cfg, wrapped).tensors) == len(wrapped.names)


def test_of_several_networks_one_has_to_be_chosen():
    """Self-Forcing's and LongLive's `{"generator": .., "critic": .., "generator_ema": .., "step": ..}`."""
    cfg, parts = preset("nano"), ("generator", "critic", "generator_ema")
    file = _renamed(_file("dit", cfg), *(lambda name, part=part: f"{part}.{name}" for part in parts))
    with pytest.raises(
        InputError, match=r"3 times: choose one as weights\.pth:NAME.*critic, generator, generator_ema$"
    ):
        convert.find("dit", cfg, dataclasses.replace(file, path=Path("weights.pth")))
    chosen = dataclasses.replace(file, path=Path("weights.pth")).part("generator_ema")
    assert convert.find("dit", cfg, chosen).tensors.keys() == convert.released_shapes("dit", cfg).keys()


def test_what_lies_beside_the_network_is_told():
    cfg = preset("nano")
    file = _file("dit", cfg, lambda arrays: arrays.update({"optimizer.0.exp_avg": np.zeros(3, np.float32)}))
    assert convert.find("dit", cfg, file).aside == ("optimizer.0.exp_avg",)
    with pytest.raises(
        InputError, match=r"unknown tensor model\.lora\.weight"
    ):  # what lies in it is no matter of taste
        convert.find("dit", cfg, _file("dit", cfg, lambda a: a.update({"model.lora.weight": np.zeros(3, np.float32)})))


def test_a_file_of_something_else_is_told_by_what_it_holds():
    other = {name: LazyArray((2,), np.dtype("f4"), lambda: None) for name in ("unet.a", "unet.b", "unet.c", "unet.d")}
    with pytest.raises(
        InputError, match=r"none of the \d+ tensors of a dit, but 4 others, such as unet\.a, unet\.b, unet"
    ):
        convert.find("dit", preset("nano"), TensorFile("weights.pth", other))


def test_numbers_that_are_not_finite_are_named_when_they_are_read():
    bad = np.zeros(32, np.float32)
    bad[3:5] = np.nan, np.inf
    tree = convert.to_tree("vae", VAE, _vae_file({"conv1.bias": bad}), BF16)
    with pytest.raises(
        InputError, match=r"tensor conv1\.bias of weights\.pth holds 2 of 32 numbers that are not finite"
    ):
        tree["encoder"]["moments"]["bias"].read()
    with pytest.raises(InputError, match=r"parameter a\.b holds 2 of 32"):
        convert.rounded({"a": {"b": bad}})["a"]["b"].read()
    # What rounding makes infinite was finite in the file.
    large = convert.to_tree("vae", VAE, _vae_file({"conv1.bias": np.full(32, 1e39)}), np.dtype(np.float32))
    with pytest.raises(InputError, match=r"32 of 32 numbers"), np.errstate(over="ignore"):
        large["encoder"]["moments"]["bias"].read()


@pytest.mark.parametrize("kind", ["i1", "u1", "i8", "?"])
def test_a_quantised_tensor_is_named(kind):
    with pytest.raises(InputError, match=r"tensor conv1\.bias of weights\.pth holds u?(int|bool).*quantised"):
        convert.find("vae", VAE, _vae_file({"conv1.bias": np.zeros(32, kind)}))


@pytest.mark.parametrize("columns", [4, 6])
def test_a_foundation_file_has_four_or_six_keyboard_columns(golden, columns):
    """The released header at hand has four; reports of users speak of six. Both are the foundation model."""
    cfg = preset("foundation")
    shapes = convert.released_shapes("dit", cfg)
    for name in shapes:
        if name.endswith("keyboard_embed.0.weight"):
            shapes[name] = (shapes[name][0], columns)
    file = TensorFile("base", {name: LazyArray(shape, BF16, lambda: None) for name, shape in shapes.items()})
    world = convert.fit_columns(cfg, file)
    assert len(convert.find("dit", world, file).tensors) == len(shapes)
    assert world.control.columns == ("forward", "back", "left", "right", "jump", "attack")[:columns]
    assert (world == cfg) == (columns == 4)
    released = json.loads((golden / "official_keys" / "foundation.json").read_text())
    action = released.get("config", released)["action_config"]
    action["keyboard_dim_in"] = columns
    assert convert.world_config_from_released(json.dumps(released)).control == world.control


def test_a_tree_of_another_model_is_not_written():
    tree = convert.to_tree("vae", VAE, _vae_file({}))
    with pytest.raises(InputError, match="is not that of the model"):
        convert.from_tree("vae", dataclasses.replace(VAE, vae=VAEConfig(dim=16)), tree)
    del tree["encoder"]["moments"]["bias"]
    with pytest.raises(InputError, match=r"parameter encoder\.moments\.bias"):
        convert.from_tree("vae", VAE, tree)


def test_the_reference_configs(golden):
    world = _golden_world(golden, "dit_universal")
    assert (world.dit.dim, world.dit.num_heads, world.dit.num_layers, world.dit.num_action_layers) == (128, 2, 3, 2)
    assert (world.dit.action.num_heads, world.dit.action.head_dim, world.dit.action.embed_dim) == (2, 64, 32)
    assert (world.sampler.steps, world.sampler.shift) == ((1000, 666, 333), 5.0)
    assert _golden_world(golden, "dit_templerun").dit.action.mouse_dim == 0


def test_our_own_config_is_taken_too():
    text = json.dumps(dataclasses.asdict(preset("nano")))
    assert convert.world_config_from_released(text) == preset("nano")


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("config", "dim"), None, "dim is None"),
        (("config", "dim"), 127, "img_hidden_size|does not split"),
        (("config", "num_heads"), ..., "no field 'num_heads'"),
        (("config", "action_config"), ..., "no field 'action_config'"),
        (("config", "action_config", "blocks"), [0, 2], "not the first ones"),
        (("config", "action_config", "blocks"), [1], "not the first ones"),
        (("config", "action_config", "enable_keyboard"), False, "enable_keyboard is False"),
        (("config", "action_config", "qk_norm"), False, "qk_norm is False"),
        (("config", "action_config", "keyboard_dim_in"), 5, "5 keyboard columns"),
        (("config", "action_config", "heads_num"), 3, "does not split into 3 heads"),
        (("config", "action_config", "rope_dim_list"), [], "cannot be used"),
        (("config", "in_dim"), 16, "in_dim is 16"),
        (("config", "local_attn_size"), 2, "window 2 is smaller"),
        (("config",), [], "config is \\[\\]"),
        (("denoising_steps",), "many", "denoising_steps is 'many'"),
    ],
)
def test_a_config_that_this_code_cannot_run_is_refused(golden, path, value, reason):
    data = copy.deepcopy(json.loads((golden / "dit_universal" / "config.json").read_text()))
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    with pytest.raises(InputError, match=reason):
        convert.world_config_from_released(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "3", "{}"])
def test_what_is_no_config_is_refused(text):
    with pytest.raises(InputError, match="the config"):
        convert.world_config_from_released(text)
