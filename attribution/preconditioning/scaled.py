"""A block whose gradient is multiplied from both sides before it is projected: S G T in place of G.

S and T are symmetric: a vector [width] is a diagonal, [slice, width, width] are matrices along the diagonal (one per
expert, or a single one). Knows block projections; not where the scales come from.
"""

from dataclasses import dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot, pad

from ..projection.base import BlockProjection
from ..projection.two_sided import TwoSidedBlock


def scaled(inner: BlockProjection, *, rows: Tensor, columns: Tensor) -> BlockProjection:
    """`inner` of the scaled gradient. A two-sided projection takes the scales into its factors and costs no more."""
    if isinstance(inner, TwoSidedBlock):
        return replace(
            inner,
            row_factor=multiply_rows(rows, inner.row_factor),
            column_factor=multiply_rows(columns, inner.column_factor),
        )
    return ScaledBlock(inner=inner, row_scale=rows, column_scale=columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledBlock:
    """Any block projection behind two scales; values are multiplied by them first, which is exact.

    A full scale costs one product of each position's values with it: for a map of n inputs and m outputs n² + m²
    multiplications per position, where the map itself takes n·m. A diagonal costs next to nothing.
    """

    inner: BlockProjection
    row_scale: Tensor
    column_scale: Tensor

    @property
    def dim(self) -> int:
        """Numbers of the inner projection."""
        return self.inner.dim

    def rows(self, values: Float[Tensor, "example position row"], start: int = 0) -> Tensor:
        """The inner rows of g S."""
        scaled_values, start = multiply(values, self.row_scale, start)
        return self.inner.rows(scaled_values, start)

    def columns(self, values: Float[Tensor, "example position column"], *, constant: bool = False) -> Tensor:
        """The inner columns of [x, 1] T."""
        padded = pad(values, (0, 1), value=1.0) if constant else values
        return self.inner.columns(multiply(padded, self.column_scale)[0])

    def one_hot(self, index: Int[Tensor, "example position"]) -> Tensor:
        """The inner rows of one row of S; zero for −1."""
        if self.row_scale.dim() == 1:
            return self.inner.one_hot(index) * self.row_scale[index.clamp(min=0)].unsqueeze(-1)
        width = self.row_scale.shape[0] * self.row_scale.shape[1]
        return self.rows(one_hot(index + 1, width + 1)[..., 1:].to(self.row_scale.dtype))

    def combine(self, rows: Tensor, columns: Tensor) -> Float[Tensor, "example dim"]:
        """As the inner projection does."""
        return self.inner.combine(rows, columns)

    def project(self, gradient: Float[Tensor, "example row column"]) -> Float[Tensor, "example dim"]:
        """The inner projection of S G T."""
        return self.inner.project(multiply_rows(self.row_scale, multiply(gradient, self.column_scale)[0]))


def multiply(values: Float[Tensor, "... width"], scale: Tensor, start: int = 0) -> tuple[Tensor, int]:
    """Values that cover coordinates `start` and on, times the scale; and where the result starts."""
    width = values.shape[-1]
    if scale.dim() == 1:
        return values * scale[start : start + width], start
    num_slices, size, _ = scale.shape
    if num_slices == 1:
        return values @ scale[0, start : start + width], 0
    first = start // size
    parts = values.unflatten(-1, (-1, size)).unsqueeze(-2)
    return (parts @ scale[first : first + width // size]).flatten(-3), start


def multiply_rows(scale: Tensor, matrix: Float[Tensor, "... row column"]) -> Float[Tensor, "... row column"]:
    """Scale times matrix."""
    return multiply(matrix.transpose(-1, -2), scale)[0].transpose(-1, -2).contiguous()
