"""Who tried which block of a stage, where workers share no folder: in the memory of an actor that
lives and dies with the process that waits for the blocks.

See ``prefloop.pipeline.executors.attempts``, whose files it takes the place of.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from prefloop.pipeline.executors.attempts import StageOver


class Board:
    """The tries of one stage: what the actor is."""

    def __init__(self) -> None:
        self._tries: dict[int, list[str]] = defaultdict(list)
        """Why each try of a block came to nothing, where that is known."""
        self._is_over = False

    def is_over(self) -> bool:
        """Whether nobody waits for the blocks any more."""
        return self._is_over

    def end(self) -> None:
        """Let all who work on them see that it is over."""
        self._is_over = True

    def count(self, index: int) -> int:
        """How often block ``index`` was tried."""
        return len(self._tries[index])

    def begin_try(self, index: int) -> int:
        """The number of the try that begins, from 1; 0 where it is over."""
        if self._is_over:
            return 0
        self._tries[index].append("")
        return len(self._tries[index])

    def say(self, index: int, number: int, why: str) -> None:
        """Keep why a try ended that came to nothing."""
        self._tries[index][number - 1] = why

    def reason(self, index: int) -> str:
        """Why the last try came to nothing of which that is known; else empty."""
        return next(filter(None, reversed(self._tries[index])), "")


class AttemptsOnBoard:
    """The tries of one stage, as workers and who waits for them see them."""

    def __init__(self, board: Any) -> None:
        """``board``: the actor's handle, which goes to the workers."""
        self.board = board

    @staticmethod
    def begin() -> AttemptsOnBoard:
        """A new board on this machine, which no other that dies takes with it."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        made = ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here).remote()
        return AttemptsOnBoard(made)

    def end(self) -> None:
        """See ``Attempts.end``."""
        self._asked("end")

    def is_over(self) -> bool:
        """Whether it is."""
        try:
            return bool(self._asked("is_over"))
        except StageOver:
            return True

    def count(self, index: int) -> int:
        """How often block ``index`` was tried. Raises ``StageOver``."""
        return int(self._asked("count", index))

    def begin_try(self, index: int) -> int:
        """Try block ``index``: the number of the try, from 1. Raises ``StageOver``."""
        number = int(self._asked("begin_try", index))
        if not number:
            raise StageOver
        return number

    def say(self, index: int, number: int, why: str) -> None:
        """Tell why a try ended that came to nothing."""
        self._asked("say", index, number, why)

    def reason(self, index: int) -> str:
        """See ``Attempts.reason``."""
        return str(self._asked("reason", index))

    def _asked(self, what: str, *about: Any) -> Any:
        import ray

        try:
            return ray.get(getattr(self.board, what).remote(*about))
        except ray.exceptions.RayActorError:
            raise StageOver from None
