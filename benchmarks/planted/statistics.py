"""Means over seeds, and how far to trust them."""

import numpy as np
from scipy.stats import t as student


def half_interval(values: np.ndarray) -> float:
    """Half of the width of the mean's 95 % interval (Student's t); NaN for one value."""
    if len(values) < 2:
        return float("nan")
    return float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
