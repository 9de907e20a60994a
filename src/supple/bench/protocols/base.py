"""What a protocol is: data, network, optimizer, lengths, each value with the source it comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from supple.bench.optimizers import OPTIMIZERS
from supple.errors import InputError
from supple.streams import Shuffled, Stream, Task

if TYPE_CHECKING:
    from supple.bench.learner import Learner
    from supple.bench.spec import RunSpec

P = TypeVar("P", bound="Protocol")
Presenter: TypeAlias = Callable[[Tensor, Tensor], tuple[Any, Tensor]]


def sourced(default: Any, source: str) -> Any:
    """A dataclass field that says where its value comes from."""
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata={"source": source})
    return dataclasses.field(default=default, metadata={"source": source})


#: fields that the label tells
IN_LABEL = ("iid", "hidden_boundaries", "variant")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Base of all protocols. A subclass gives every field a default with `sourced`, and makes its stream."""

    name: ClassVar[str]
    title: ClassVar[str]
    description: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    #: whether task t has equally many samples under every seed, so that runs can be stacked
    even_tasks: ClassVar[bool] = True
    #: what ``judge`` counts: records are called online_<metric> and end_<metric>
    metric: ClassVar[str] = "accuracy"
    #: whether its tasks are data sets; otherwise an agent makes its own data
    supervised: ClassVar[bool] = True
    #: whether weights and bias of the head are set to zero at the start of every task, in every method
    zero_head: ClassVar[bool] = False
    #: the activation of the plain network
    activation: ClassVar[str] = "relu"
    #: the network, a name of `supple.bench.networks`
    network: str = sourced("mlp", "the network of this protocol is an MLP")

    tasks: int
    batch: int
    epochs: int
    inputs: int
    hidden: tuple[int, ...]
    outputs: int
    optimizer: str
    lr: float
    #: settings of methods that differ from the method's own defaults, by method name
    settings: dict[str, dict[str, Any]] = sourced({}, "the methods' own")  # noqa: RUF009 (returns a field)

    #: the i.i.d. control of the protocol: another protocol, with a name of its own
    iid: bool = sourced(False, "the control: the same samples shuffled into one stream")
    #: nobody is told where a task ends: no reset at a boundary, no head set to zero
    hidden_boundaries: bool = sourced(False, "whether boundaries are untold")
    #: what the name says of values that were changed from the preset's
    variant: str = sourced("", "changed from the preset")

    def __post_init__(self) -> None:
        for field in ("tasks", "batch", "epochs", "inputs", "outputs"):
            if getattr(self, field) < 1:
                raise InputError(f"{field} must be at least 1", found=getattr(self, field), where=self.name)
        if self.optimizer not in OPTIMIZERS:
            raise InputError(
                f"unknown optimizer {self.optimizer!r}",
                where=self.name,
                do=f"choose one of {sorted(OPTIMIZERS)}",
            )

    @classmethod
    def preset(cls: type[P], preset: str = "demo", **overrides: Any) -> P:
        """The protocol at a named size; further values by keyword.

        Raises:
            InputError: an unknown preset or field, with the known ones.
        """
        if preset not in cls.presets:
            raise InputError(
                f"unknown preset {preset!r} of {cls.name}", do=f"choose one of {', '.join(cls.presets)}"
            )
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(overrides) - known):
            raise InputError(
                f"unknown setting(s) of {cls.name}",
                found=", ".join(unknown),
                do=f"choose from {', '.join(sorted(known))}",
            )
        return cls(**{**cls.presets[preset], **overrides})

    def stream(self, seed: int) -> Stream:
        """The tasks; the same for every method of one seed, so that methods can be compared in pairs."""
        raise TypeError(f"{type(self).__name__} does not say which stream it has")

    def sequence(self, seed: int) -> Stream:
        """The tasks that a run learns: those of the stream, or its shuffled control."""
        return Shuffled(self.stream(seed)) if self.iid else self.stream(seed)

    @property
    def label(self) -> str:
        """The name under which runs are kept."""
        marks = ("iid" * self.iid, "hidden-boundaries" * self.hidden_boundaries, self.variant)
        return "-".join([self.name, *(m for m in marks if m)])

    def learner(self, spec: RunSpec) -> Learner:
        """What learns a run of this protocol."""
        from supple.bench.learner import Learner

        return Learner(spec)

    def check(self) -> None:
        """Raise what a run would raise for want of data, and decode the data, before any worker starts."""
        self.sequence(0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return (self.inputs,)

    @property
    def initial(self) -> str:
        """The law of fresh weights, for methods that draw some: read off each layer but in the own MLP."""
        return "he_uniform" if self.network == "mlp" else "auto"

    def example(self) -> Any:
        """A batch of the form that the network gets, to trace it with."""
        return torch.zeros(self.batch, *self.shape)

    def presenter(self, task: Task, purpose: str) -> Presenter:
        """What the network is shown and asked of a batch of the task; ``purpose`` keys what is drawn.

        Here the batch as it is.
        """
        return lambda inputs, targets: (inputs, targets)

    def answers(self, task: Task, outputs: Tensor) -> Tensor:
        """The outputs that count in this task; here all of them."""
        return outputs

    def judge(self, outputs: Tensor, targets: Tensor) -> tuple[float, int]:
        """How many answers are right, and how many are not finite: (sum of the metric, samples without an answer)."""
        finite = outputs.isfinite().all(-1)  # argmax of NaN is an index like any other
        right = (outputs.argmax(-1) == targets) & finite
        return int(right.sum()), int((~finite).sum())

    def build_optimizers(self, parameters: Iterable[Tensor]) -> list[torch.optim.Optimizer]:
        """New optimizers as the protocol has them: one, but for "muon"."""
        return OPTIMIZERS[self.optimizer](parameters, self.lr)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(outputs, targets)

    def steps_per_task(self, samples: int) -> int:
        return samples // self.batch * self.epochs

    def to_dict(self) -> dict[str, Any]:
        """Name and every value, as plain types."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in IN_LABEL}
        return {"name": self.label, **values}

    @classmethod
    def sources(cls) -> dict[str, str]:
        """Field -> where its value comes from."""
        return {f.name: f.metadata["source"] for f in dataclasses.fields(cls)}
