"""A block: rows of one stream together with the layout that tells what they hold, read by name."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mlflow_tfmon.stream.records import DeepSteps, Steps, StreamOpened


@dataclass(frozen=True)
class Block:
    """Consecutive rows of steps, or of deep steps.

    Attributes:
        layout: of the stream.
        seen: Unix time at which they were read, seconds.
        names: of what there is once a row, "step" among them.
        quantities: names of what there is of each variable.
        values: shape (rows, names + quantities * variables).

    Example:
        >>> block = Block.of(layout, record)
        >>> block.step("loss"), block.variables("grad_norm")
    """

    layout: StreamOpened
    seen: float
    names: tuple[str, ...]
    quantities: tuple[str, ...]
    values: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, layout: StreamOpened, record: Steps | DeepSteps) -> Block:
        """The rows of a record.

        Raises:
            ValueError: the record has another width than its layout says.
        """
        if isinstance(record, Steps):
            names, quantities = layout.columns, layout.variable_columns
        else:
            names, quantities = ("step",), layout.deep_columns
        width = len(names) + len(quantities) * len(layout.variables)
        if record.values.shape[1] != width:
            raise ValueError(
                f"a block of stream {layout.stream} is {record.values.shape[1]} wide, not {width}"
            )
        return cls(layout, record.seen, names, quantities, record.values)

    def __len__(self) -> int:
        return len(self.values)

    def step(self, name: str) -> np.ndarray:
        """A column, shape (rows,): a view.

        Raises:
            ValueError: there is none of that name.
        """
        column: np.ndarray = self.values[:, self.names.index(name)]
        return column

    def variables(self, name: str) -> np.ndarray:
        """A quantity of all variables, shape (rows, variables): a view.

        Raises:
            ValueError: there is none of that name.
        """
        count = len(self.layout.variables)
        begin = len(self.names) + self.quantities.index(name) * count
        found: np.ndarray = self.values[:, begin : begin + count]
        return found

    @property
    def scalars(self) -> np.ndarray:
        """What there is once a row, shape (rows, names): a view."""
        found: np.ndarray = self.values[:, : len(self.names)]
        return found

    @property
    def steps(self) -> np.ndarray:
        """Numbers of the optimizer steps, int64."""
        return self.step("step").astype(np.int64)

    @property
    def times(self) -> np.ndarray:
        """Unix time of each row, seconds: when the rows were read, where nothing tells when they were made."""
        return self.step("time") if "time" in self.names else np.full(len(self), self.seen)

    @property
    def last(self) -> dict[str, float]:
        """The last row, by name."""
        return dict(zip(self.names, self.values[-1].tolist(), strict=False))
