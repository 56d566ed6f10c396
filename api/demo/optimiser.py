"""The demonstration's optimisers: Muon for the matrices of a GPT-NeoX's layers, AdamW for everything else.

Knows the names of GPT-NeoX's parameters and how its heads interleave query, key and value. Knows no schedule.
"""

from typing import Any

import torch


class Muon(torch.optim.Optimizer):
    """Momentum steps whose matrix is made nearly orthogonal; `num_parts` matrices may lie in one parameter's rows.

    Jordan et al. 2024 ("Muon"), with Nesterov momentum. We differ in splitting the fused query, key and value
    matrix, whose parts would otherwise share one spectrum. Weight decay is decoupled.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "num_parts": 1})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closures here
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._update(parameter, group)

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        if gradient is None:
            return
        state = self.state[parameter]
        average = state.setdefault("average", torch.zeros_like(parameter))
        average.lerp_(gradient, 1 - group["momentum"])
        nesterov = gradient.lerp(average, group["momentum"])
        rows, columns = parameter.shape
        parts = group["num_parts"]
        heads = group.get("num_heads", 1)
        stacked = nesterov.view(heads, parts, -1, columns).transpose(0, 1).reshape(parts, rows // parts, columns)
        update = _orthogonalised(stacked).view(parts, heads, -1, columns).transpose(0, 1).reshape(rows, columns)
        scale = max(1.0, rows / parts / columns) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)


def _orthogonalised(matrices: torch.Tensor, num_iterations: int = 5) -> torch.Tensor:
    """The nearest matrices with all singular values near 1; shape [matrix, row, column], by a quintic iteration."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: torch.Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(num_iterations):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


def optimisers(
    model: Any,  # noqa: ANN401 - transformers is untyped
    *,
    num_heads: int,
    matrix_learning_rate: float,
    table_learning_rate: float,
    weight_decay: float,
) -> list[torch.optim.Optimizer]:
    """Muon for every matrix inside a layer, AdamW without decay for embeddings, output head, norms and biases."""
    fused: list[torch.Tensor] = []
    matrices: list[torch.Tensor] = []
    rest: list[torch.Tensor] = []
    for name, parameter in model.named_parameters():
        in_layer = ".layers." in name and parameter.ndim == 2
        (fused if in_layer and "query_key_value" in name else matrices if in_layer else rest).append(parameter)
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": fused, "num_parts": 3, "num_heads": num_heads}]
    return [
        Muon(groups, lr=matrix_learning_rate, weight_decay=weight_decay),
        torch.optim.AdamW(rest, lr=table_learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
