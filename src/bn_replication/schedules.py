"""Learning-rate schedules: pure functions from the share of training done to a multiplier of the rate."""

from __future__ import annotations


def exponential(progress: float, total: float, speed: float = 1.0) -> float:
    """Return the multiplier after ``progress`` (0..1) of training: ``total ** (speed * progress)``.

    Args:
        progress: steps done over all steps.
        total: multiplier at the end of training when ``speed`` is 1; 1 keeps the rate constant.
        speed: how many times faster the rate decays (Sec. 4.2.1, item 4: 6).
    """
    return total ** (speed * progress)
