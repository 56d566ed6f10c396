"""Columns of numbers as fields of a pydantic model: typed, copied, read-only.

Knows dtypes, dimensions, lengths and ranges. Knows nothing of what the columns mean.
"""

from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, BeforeValidator


def _column(dtype: type[np.generic], num_dimensions: int) -> BeforeValidator:
    """Coerce anything array-like to a read-only array of this dtype and number of dimensions."""

    def check(value: object) -> np.ndarray | None:
        if value is None:  # only fields that are declared optional accept it
            return None
        array = np.array(value, dtype=dtype)
        if array.size == 0 and array.ndim == 1:
            array = array.reshape((0,) * num_dimensions)
        if array.ndim != num_dimensions:
            raise ValueError(f"{array.ndim} dimensions; this column has {num_dimensions}")
        array.setflags(write=False)
        return array

    return BeforeValidator(check)


Indices = Annotated[np.ndarray, _column(np.int32, 1)]
IndexTable = Annotated[np.ndarray, _column(np.int32, 2)]
Floats = Annotated[np.ndarray, _column(np.float32, 1)]
FloatTable = Annotated[np.ndarray, _column(np.float32, 2)]
FloatCube = Annotated[np.ndarray, _column(np.float32, 3)]


def same_length(part: BaseModel, *names: str) -> None:
    """Raise ValueError unless these fields of `part` are equally long."""
    lengths = {name: len(getattr(part, name)) for name in names}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of different lengths: {lengths}")


def within(name: str, indices: ArrayLike, count: int, *, absent: bool = False) -> None:
    """Raise ValueError unless all indices lie in [0, count); -1 is accepted too where `absent` is set."""
    values = np.asarray(indices)
    if values.size and (values.min() < (-1 if absent else 0) or values.max() >= count):
        raise ValueError(f"{name}: indices from {values.min()} to {values.max()}; there are {count}")
