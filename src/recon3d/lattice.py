"""Every so-and-so-many-th pixel of an image."""

from typing import NamedTuple


class Lattice(NamedTuple):
    """Pixels at every `step`-th row and column, the first of them at `row` and `column`.

    `step` divides the sides of patches, so that every patch has equally many.
    """

    step: int = 1
    row: int = 0
    column: int = 0

    @property
    def rows(self) -> slice:
        """The rows of an image."""
        return slice(self.row, None, self.step)

    @property
    def columns(self) -> slice:
        """The columns of an image."""
        return slice(self.column, None, self.step)


EVERY_PIXEL = Lattice()
