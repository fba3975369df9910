"""Schedule, weights and the flow-matching loss against the design page's golden tables and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.diffusion import flow, schedule

TABLE = {  # shift: (t, w) at index 0, 250, 500, 750, 999
    1.0: ((1000, 750, 500, 250, 1), (0, 1.1079, 1.5796, 1.1079, 0.0049)),
    3.0: ((1000, 900, 750, 500, 2.99), (0, 0.5466, 1.2609, 1.7978, 0.0166)),
    5.0: ((1000, 937.5, 833.33, 625, 4.98), (0, 0.3980, 1.0249, 1.9140, 0.0319)),
    8.0: ((1000, 960, 888.89, 727.27, 7.94), (0, 0.3043, 0.8324, 1.8558, 0.0606)),
}
WARPED = [
    ((1000, 750, 500, 250), 5.0, (1000, 937.5, 833.333, 625)),
    ((1000, 666, 333), 5.0, (1000, 908.843, 713.979)),
    ((1000, 800, 600, 400, 200), 5.0, (1000, 952.381, 882.353, 769.231, 555.556)),
    ((1000, 750, 500, 250), 8.0, (1000, 960, 888.889, 727.273)),
]


@pytest.mark.parametrize("shift", TABLE)
def test_t1_1_schedule_and_weights(shift):
    index = [0, 250, 500, 750, 999]
    t, w = TABLE[shift]
    np.testing.assert_allclose(1000 * schedule.sigmas(shift)[index], t, atol=6e-3)  # the table has two decimals
    np.testing.assert_allclose(schedule.training_weights(shift)[index], w, atol=1e-3)


@pytest.mark.parametrize(("steps", "shift", "warped"), WARPED)
def test_t1_1_warped_lists(steps, shift, warped):
    np.testing.assert_allclose(1000 * schedule.step_sigmas(steps, shift), warped, atol=1e-3)


@pytest.mark.parametrize("shift", TABLE)
def test_t1_2_weights_have_mean_one_and_nothing_at_pure_noise(shift):
    weights = schedule.training_weights(shift)
    assert weights[0] == 0.0
    np.testing.assert_allclose(weights.mean(), 1.0, rtol=1e-12)


def test_x0_and_velocity_are_inverse():
    x0, noise = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3, 5)), jnp.float32)
    sigma = jnp.array([0.0, 0.3, 0.9, 1.0])
    x = flow.add_noise(x0, noise, sigma)
    np.testing.assert_allclose(flow.clean(x, noise - x0, sigma), x0, atol=1e-6)  # one rounding of float32
    np.testing.assert_array_equal(x[0], x0[0])


def test_sigmas_are_stratified_and_shifted():
    sigma = np.sort(flow.draw_sigmas(jax.random.key(0), 100, 5.0))
    u = sigma / (5 - 4 * sigma)
    # One draw in each hundredth of (0, 1).
    assert (np.floor(u * 100 + 1e-4).astype(int).clip(0, 99) == np.arange(100)).mean() > 0.97
    wild = flow.draw_sigmas(jax.random.key(0), 20_000, 1.0, "logit_normal")
    logit = np.log(wild / (1 - wild))
    np.testing.assert_allclose([logit.mean(), logit.std()], [0, 1], atol=0.03)  # 4 standard errors


def test_t3_6_guidance_conventions():
    """cond + g (cond - null) of one half of the literature is null + w (cond - null) of the other with w = g + 1."""
    with jax.enable_x64(True):
        conditional, null = jnp.asarray(np.random.default_rng(0).normal(size=(2, 50)))
        np.testing.assert_allclose(
            flow.guided(conditional, null, 4.0), conditional + 3.0 * (conditional - null), rtol=1e-12
        )
        np.testing.assert_array_equal(flow.guided(conditional, jnp.zeros(50), 1.0), conditional)
