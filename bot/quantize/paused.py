"""Several runs of a layer, each on a part of the text, that all pause before the same linears."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import greenlet
from torch import Tensor, nn

from bot.errors import QuantizationError


class Paused(NamedTuple):
    """One run in a pause. inputs: what the linear will read, [tokens, in]; stream: what norms have read."""

    inputs: Tensor
    stream: dict[str | None, Tensor]


class PausedRuns:
    """Runs of a layer on parts of the text, all of which pause before the same linears.

    What is done to the layer's weights in a pause counts for everything that runs after it. Each run is a
    greenlet, as a layer's forward cannot be left and entered again otherwise; one runs at a time. stops: the
    linears, in the order in which they run. norms: whose inputs are kept. parts: the states of each run.
    """

    def __init__(
        self,
        layer: nn.Module,
        run: Callable[[int, Tensor], Tensor],
        parts: Sequence[Tensor],
        *,
        stops: Sequence[str],
        norms: Collection[str],
    ) -> None:
        self._main = greenlet.getcurrent()
        self._stops = list(stops)
        self._runs = {greenlet.greenlet(partial(run, number, part)): part for number, part in enumerate(parts)}
        self._passed = dict.fromkeys(self._runs, 0)
        self._stream: dict[Any, dict[str | None, Tensor]] = {run: {None: part} for run, part in self._runs.items()}
        self._handles = [
            layer.get_submodule(name).register_forward_pre_hook(partial(hook, name))
            for hook, names in ((self._keep, norms), (self._pause, stops))
            for name in names
        ]

    def __enter__(self) -> PausedRuns:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        for run in self._runs:
            run.throw()  # ends those that are paused

    def at(self, stop: str) -> Iterator[Paused]:
        """The runs, one after the other, in this pause. To be called for each stop in turn."""
        for run in self._runs:
            paused = run.switch()
            if not isinstance(paused, Paused):
                raise QuantizationError(f"{stop} is not reached by all of the text")
            yield paused

    def outputs(self) -> Iterator[Tensor]:
        """Of the layer, part by part, once all stops are passed."""
        for run in self._runs:
            yield run.switch()

    def _keep(self, name: str, module: nn.Module, args: Any) -> None:
        if (run := greenlet.getcurrent()) in self._stream:
            self._stream[run].setdefault(name, args[0])

    def _pause(self, name: str, module: nn.Module, args: Any) -> None:
        run = greenlet.getcurrent()
        if run not in self._passed:  # the rest of a long text, which nothing is corrected for
            return
        passed = self._passed[run]
        # A linear that runs several times pauses only the first time.
        if passed < len(self._stops) and self._stops[passed] == name:
            self._passed[run] = passed + 1
            inputs = args[0].detach()
            self._main.switch(Paused(inputs.reshape(-1, inputs.shape[-1]), self._stream[run]))
