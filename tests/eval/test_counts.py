"""What is counted of a compiled program: of a text small enough to count by hand, and for GPUs where the wheels are."""

import importlib.util

import pytest

from mgjax import targets
from mgjax.errors import InputError
from mgjax.eval import counts

pytestmark = pytest.mark.usefixtures("optimised")

# y = relu(x) @ w for three rounds of a loop, then a copy of the weights; f32[256,256] has 262,144 bytes.
HLO = """
HloModule small

%relu (p: f32[256,256]) -> f32[256,256] {
  %p = f32[256,256]{1,0} parameter(0)
  %zero = f32[] constant(0)
  %zeros = f32[256,256]{1,0} broadcast(%zero), dimensions={}
  ROOT %max = f32[256,256]{1,0} maximum(%p, %zeros)
}

%rows (a: f32[256,256]) -> f32[8,256] {
  %a = f32[256,256]{1,0} parameter(0)
  ROOT %part = f32[8,256]{1,0} slice(%a), slice={[0:8], [0:256]}
}

%body (t: (s32[], f32[256,256], f32[256,256])) -> (s32[], f32[256,256], f32[256,256]) {
  %t = (s32[], f32[256,256]{1,0}, f32[256,256]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[256,256]{1,0} get-tuple-element(%t), index=1
  %w = f32[256,256]{1,0} get-tuple-element(%t), index=2
  %r = f32[256,256]{1,0} fusion(%x), kind=kLoop, calls=%relu
  %y = f32[256,256]{1,0} dot(%r, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %out = (s32[], f32[256,256]{1,0}, f32[256,256]{1,0}) tuple(%i, %y, %w)
}

%done (t2: (s32[], f32[256,256], f32[256,256])) -> pred[] {
  %t2 = (s32[], f32[256,256]{1,0}, f32[256,256]{1,0}) parameter(0)
  ROOT %no = pred[] constant(false)
}

ENTRY %main (x0: f32[256,256], w0: f32[256,256]) -> (f32[256,256], f32[256,256], f32[8,256]) {
  %x0 = f32[256,256]{1,0} parameter(0), metadata={op_name="x"}
  %w0 = f32[256,256]{1,0} parameter(1), metadata={op_name="params['w']"}
  %start = s32[] constant(0)
  %state = (s32[], f32[256,256]{1,0}, f32[256,256]{1,0}) tuple(%start, %x0, %w0)
  %loop = (s32[], f32[256,256]{1,0}, f32[256,256]{1,0}) while(%state), condition=%done, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %y0 = f32[256,256]{1,0} get-tuple-element(%loop), index=1
  %turned = f32[256,256]{0,1} copy(%w0)
  %few = f32[8,256]{1,0} fusion(%y0), kind=kLoop, calls=%rows
  ROOT %all = (f32[256,256]{1,0}, f32[256,256]{0,1}, f32[8,256]{1,0}) tuple(%y0, %turned, %few)
}
"""  # noqa: E501
SIZE, ROWS = 4 * 256 * 256, 4 * 8 * 256


def test_kernels_bytes_and_operations_are_counted_by_the_rounds_of_loops():
    made = counts.count(HLO, bandwidth=1e9, peak=1e12)
    assert made.kernels == 3 * 2 + 2
    # In a round: read and write of the relu; two factors and a product. After: the copy; of a slice what it takes.
    assert made.bytes == 3 * (2 * SIZE + 3 * SIZE) + 2 * SIZE + 2 * ROWS
    assert made.flops == {"product": 3 * 2 * 256**3, "convolution": 0.0, "attention": 0.0}
    assert made.kinds["copy"] == (2, 2 * SIZE + 2 * ROWS)
    assert made.bandwidth_s == made.bytes / 1e9
    assert made.matrix_s == 3 * 2 * 256**3 / 1e12
    assert made.bound_s >= max(made.bandwidth_s, made.matrix_s)


def test_a_whole_argument_that_is_copied_is_named():
    (copied,) = [kernel.argument for kernel in counts.kernels(HLO) if kernel.argument is not None]
    assert copied == "params['w']"
    assert counts.count(HLO, 1.0, 1.0).copied == ()  # of less than a megabyte nothing is made
    large = HLO.replace("256,256]", "1024,1024]").replace("8,256]", "8,1024]")
    assert counts.count(large, 1.0, 1.0).copied == ("params['w']",)


def test_targets_are_what_their_makers_say():
    """Dense bfloat16 rates of the data sheets, in 10^12 a second, within what rounding of clocks makes."""
    sheets = {"h100_sxm": 989.4, "h200": 989.4, "a100": 312, "rtx6000pro": 503.8, "b200": 2250}
    for name, rate in sheets.items():
        assert targets.find(name).peak == pytest.approx(rate * 1e12, rel=5e-3)
    assert targets.find("h200").bandwidth == 4.8e12


def test_a_file_of_xlas_own_is_a_target_and_others_are_refused(tmp_path):
    path = tmp_path / "gpu.txtpb"
    path.write_text(
        "gpu_device_info { core_count: 132 memory_bandwidth: 3352320000000 matrix_unit_description { rate_infos { key:"
        " 2 value { clock_rate_ghz: 1.8 units_per_core: 4 ops_per_clock: 1024 } } rate_infos { key: 16 value {"
        ' clock_rate_ghz: 1.83 units_per_core: 4 ops_per_clock: 512 } } } } device_description_str: "some GPU"'
    )
    found = targets.find(str(path))
    assert (found.name, found.bandwidth) == ("some GPU", 3352320000000)
    assert found.peak == pytest.approx(989.4e12, rel=1e-3)
    path.write_text("core_count: 3")
    with pytest.raises(InputError, match="does not tell"):
        targets.find(str(path))
    with pytest.raises(InputError, match="none of h100_sxm"):
        targets.find("h1000")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="JAX's CUDA wheels (extra `cuda`) are not installed"
)
@pytest.mark.parametrize("name", targets.TARGETS)
def test_nothing_of_weights_and_caches_is_copied(name, monkeypatch):
    from mgjax.config import Settings, preset
    from mgjax.world import World

    monkeypatch.setenv("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    parts = counts.stream(World(preset("nano"), Settings("bfloat16", attention="xla")), targets.find(name))
    assert [part.name for part in parts] == ["a pass of the DiT", "commit", "decode"]
    assert all(part.counts.kernels > 20 and part.counts.flops["product"] > 0 for part in parts[:2])
    assert not any(part.counts.copied for part in parts)
