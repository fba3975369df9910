"""The flow-matching schedule (design page section 4, training page section 0.2).

(1) x_t = (1 - sigma) x0 + sigma noise                (2) velocity = noise - x0,  x0 = x_t - sigma velocity
(3) sigma_i = s u_i / (1 + (s - 1) u_i),  u_i = 1 - i / 1000,  i = 0 .. 999,  timestep t_i = 1000 sigma_i
(4) a listed step d stands for index 1000 - d of the table, and 0 for sigma = 0
"""

import numpy as np

NUM_TIMESTEPS = 1000


def sigmas(shift: float) -> np.ndarray:
    """The table (3), descending, float64 [1000]."""
    u = 1 - np.arange(NUM_TIMESTEPS) / NUM_TIMESTEPS
    return shift * u / (1 + (shift - 1) * u)


def step_sigmas(steps: tuple[int, ...], shift: float) -> np.ndarray:
    """Sigma of each listed step (4), float64 [len(steps)]; ValueError unless the list descends within [1, 1000]."""
    if not steps or list(steps) != sorted(set(steps), reverse=True) or not 1 <= steps[-1] <= steps[0] <= NUM_TIMESTEPS:
        raise ValueError(f"denoising steps {steps} do not descend within [1, {NUM_TIMESTEPS}]")
    return sigmas(shift)[NUM_TIMESTEPS - np.asarray(steps)]


def training_weights(shift: float) -> np.ndarray:
    """Loss weight of each table entry, float64 [1000], mean 1: exp(-2 ((t - 500) / 1000)^2) minus its minimum,
    scaled.
    """
    weights = np.exp(-2 * ((NUM_TIMESTEPS * sigmas(shift) - 500) / 1000) ** 2)
    weights -= weights.min()
    return weights * NUM_TIMESTEPS / weights.sum()
