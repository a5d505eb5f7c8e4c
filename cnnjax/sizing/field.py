"""Receptive fields: which part of the input a cell sees, by arithmetic alone."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """What the cells of one axis see of the input's axis.

    Cell `i` sees the input positions `start + i * jump` to `start + i * jump + size - 1`; negative ones and
    those beyond the input lie in the padding.

    Attributes:
        size: width of the receptive field, in input positions.
        jump: how far apart the fields of two neighbouring cells are (the product of all strides so far).
        start: the first position that cell 0 sees.

    Source: the slide on retinotopy (nearby cells see nearby regions); the recurrences are those of Araujo,
    Norris and Sim 2019, "Computing receptive fields of convolutional neural networks" (Distill).

    >>> field = Field()  # the input itself
    >>> for _ in range(2):
    ...     field = field.after(3, padding=1).after(2, stride=2)
    >>> field, field.interval(5), field.centre(5)
    (Field(size=10, jump=4, start=-3), (17, 26), 21.5)
    """

    size: int = 1
    jump: int = 1
    start: int = 0

    def after(self, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> "Field":
        """Return the field behind a convolution or pooling.

        Args:
            kernel: width of its window.
            stride: its stride.
            padding: positions added before the axis (the left or upper padding).
            dilation: distance of the window's entries.
        """
        reach = dilation * (kernel - 1) * self.jump
        return Field(self.size + reach, self.jump * stride, self.start - padding * self.jump)

    def interval(self, cell: int) -> tuple[int, int]:
        """First and last input position that a cell sees, both included and not clipped to the input."""
        first = self.start + cell * self.jump
        return first, first + self.size - 1

    def centre(self, cell: int) -> float:
        """Middle of what a cell sees, in input positions (whole numbers are middles of pixels)."""
        return self.start + cell * self.jump + (self.size - 1) / 2
