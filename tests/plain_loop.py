"""The oracle of gradient rows: autograd's own gradient of each loss, formed in full, then the same projection."""

import torch


def plain_rows(engine, batch, losses):
    """[unit, dim]: one backward pass per loss, by all parameters; projected block by block."""
    names = [p for b in engine.blocks for p in b.parameters]
    parameters = [engine.model.get_parameter(p).requires_grad_() for p in names]
    values = losses(engine.model, batch)
    rows = []
    for value in values:
        found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        full = {
            n: torch.zeros_like(p)[None] if g is None else g[None]
            for n, p, g in zip(names, parameters, found, strict=True)
        }
        rows.append(
            torch.cat(
                [
                    p.project(b.matrix(full).to(engine.dtype))[0]
                    for p, b in zip(engine.passes.projections, engine.blocks, strict=True)
                ]
            )
        )
    engine.model.requires_grad_(False)
    return torch.stack(rows)


def assert_equal_rows(rows, wanted, tolerance=1e-10):
    """Relative error of each row; float64 rounding over a few thousand sums leaves 1e-14."""
    error = (rows - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert error.max() < tolerance, f"relative error {error.max():.1e}"
