"""How each block's gradient is found: the quickest way that was not proved wrong.

By taps; else by copies of its parameters in the module that owns them, or the one around it; else by differentiating
once per unit, which is always right. Knows names only.
"""

from ..blocks import Block


class Route:
    """One way per block; `demote` takes the next slower one."""

    def __init__(self, blocks: tuple[Block, ...]) -> None:
        self._blocks = blocks
        self._owners: dict[int, str | None] = {
            number: _owner(block.parameters[0]) for number, block in enumerate(blocks) if not block.uses
        }
        """Blocks that taps do not cover: the module whose copies do, or None."""

    @property
    def tapped(self) -> frozenset[int]:
        """Blocks that taps cover."""
        return frozenset(n for n in range(len(self._blocks)) if n not in self._owners)

    @property
    def copied(self) -> list[int]:
        """Blocks that copies cover."""
        return [number for number, owner in self._owners.items() if owner is not None]

    @property
    def in_full(self) -> list[int]:
        """Blocks whose gradient is formed in full before it is projected: copied ones, and tapped norms."""
        norms = [n for n in sorted(self.tapped) if self._blocks[n].uses[0].tap == "norm"]
        return [*norms, *self.copied]

    @property
    def looped(self) -> list[int]:
        """Blocks that only one differentiation per unit covers."""
        return [number for number, owner in self._owners.items() if owner is None]

    @property
    def owners(self) -> dict[str, str]:
        """For each copied parameter the module whose copies it has."""
        return {p: o for n, o in self._owners.items() if o is not None for p in self._blocks[n].parameters}

    def way(self, number: int) -> str:
        """`tap`, `copies` or `loop`."""
        return "tap" if number not in self._owners else "loop" if self._owners[number] is None else "copies"

    def demote(self, number: int) -> None:
        """From taps to copies in the module around (a norm: in itself); from copies to the loop."""
        block = self._blocks[number]
        owner = _owner(block.parameters[0])
        if number in self._owners:
            self._owners[number] = None
        else:
            self._owners[number] = owner if block.uses[0].tap == "norm" else _owner(owner)

    def blocks_of(self, module: str) -> list[int]:
        """Blocks that are found at a module: by its tap, or by copies that it owns."""
        return [
            number
            for number, block in enumerate(self._blocks)
            if (
                self._owners[number] == module
                if number in self._owners
                else any(use.module == module for use in block.uses)
            )
        ]


def _owner(name: str) -> str:
    return name.rpartition(".")[0]
