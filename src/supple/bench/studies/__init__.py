"""Questions that take several protocols to answer: each a run list, and a reading of the finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from supple.bench.spec import RunSpec
from supple.bench.studies.grama_vs_dormant import GramaVsDormant
from supple.bench.studies.predicts import Predicts
from supple.bench.studies.rl_gym import RlGym
from supple.bench.studies.rl_minatar import RlMinatar


class Study(Protocol):
    """One question. ``str`` of an answer is what a person reads, ``to_dict`` what is committed."""

    name: ClassVar[str]
    description: ClassVar[str]
    presets: ClassVar[tuple[str, ...]]

    @staticmethod
    def specs(preset: str, seeds: Sequence[int]) -> list[RunSpec]:
        """The runs that answer it."""
        ...

    @classmethod
    def read(cls, root: Path) -> Any:
        """The answer from the finished runs below a folder."""
        ...


STUDIES: dict[str, type[Study]] = {
    study.name: study for study in (GramaVsDormant, Predicts, RlGym, RlMinatar)
}

__all__ = ["STUDIES", "GramaVsDormant", "Predicts", "RlGym", "RlMinatar", "Study"]
