"""Stable-Baselines3: one callback that observes an agent and carries interventions (extra ``rl``).

    from supple.integrations.stable_baselines3 import SuppleCallback
    agent.learn(100_000, callback=SuppleCallback(every=500))

The probe is taken from the agent's own rollout or replay buffer; the network's outputs are action
logits, action means or action values. SB3's optimizers are stepped after its own gradient clipping, so
gradients seen here are clipped already. A run without interventions is bit-identical to SB3 alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from supple.errors import InputError
from supple.integrations import sb3_probe
from supple.integrations._need import need
from supple.integrations.sb3_carry import Carried, check_interventions, chosen
from supple.integrations.sb3_chain import Statistics, check_statistics, set_statistics, switch_env
from supple.integrations.sb3_networks import Network, imitation_loss, networks, policy_now, policy_outputs
from supple.observe.instruments import select
from supple.observe.monitor import check_every

__all__ = ["SuppleCallback", "imitation_loss", "networks", "policy_outputs", "set_statistics", "switch_env"]

_base: Any = need("stable_baselines3.common.callbacks", "rl").BaseCallback

STATE_VERSION = 1
STATE_KEYS = {"version", "task", "due", "batch", "monitor", "handles"}


class SuppleCallback(_base):  # type: ignore[misc]
    """Attach a `supple.Monitor` and interventions to an SB3 agent (PPO, A2C, DQN, SAC, TD3).

    **What is observed** is the policy's network: the policy half of PPO and A2C, the action values of DQN, the actor of
    SAC and TD3. Value networks are not measured.

    **Tasks.** Call ``task(name)`` between two ``learn`` calls of a chain, with the next environment set by
    `switch_env`; or let a told `supple.streams.rl.gym.TaskSequence` run, whose ``info["task"]`` is followed by
    itself. The probe is renewed at the first rollout of a task (off-policy: when ``probe_size`` steps of it are
    there), and the old one is kept to measure forgetting.

    **Interventions** are attached to each trained network (see `networks`): one for PPO, A2C and DQN, actor and
    critic for SAC and TD3; a mapping ``{"critic": [...]}`` chooses. ``handles`` lists them network by network. Units
    that are reset are reset in the target network as well, with the same values, so that a target keeps its age but
    never holds units that the network has lost; all else reaches it by SB3's own copying or averaging. C-CHAIN
    regularises the policy of PPO and A2C, the actor, all critics: ``kind="kl"`` for discrete policies, ``"gaussian"``
    for SAC's actor, ``"mse"`` for means, actions and values (the mean over the critics); anything else is refused. A
    coefficient that follows the loss (``by_loss``, ``target``) needs the actor of SAC or TD3.

    **Saving.** ``state_dict()`` beside ``model.save``; a new callback with ``load_state_dict`` takes it up at the
    start of the next ``learn``, before a step is made. For an off-policy agent save the replay buffer too.

    Args:
        every: optimizer steps between two measurements (int or callable).
        probe_size: samples of the probe. An off-policy agent that begins to learn with fewer is looked at with those.
        instruments: the bundle, as in `supple.Monitor`.
        interventions: a sequence for all networks, or a mapping from network to sequence.
        sinks: trackers with ``log(values, step)``.
        statistics: what becomes of the statistics of a ``VecNormalize`` at a task switch: "keep" (they go on, part
            of the agent), "fresh" (begin again, as in the DMControl suite of C-CHAIN) or "frozen" (as they are).
        diagnose_at_switch: seconds for step 0 of a diagnosis of the finished task at every switch; None leaves it out.
            ``reports`` has them as (task, report).
        verbose: as in SB3.

    Raises:
        InputError: an agent or space that is not supported (at the start of ``learn``), unknown network names, a
            C-CHAIN whose kind does not fit the outputs, a second agent.

    Attributes ``monitor``, ``handles`` and ``reports`` stay readable after training. Hooks stay for the next ``learn``
    until ``detach()``.
    """

    def __init__(
        self,
        every: int | Callable[[int], bool] = 500,
        *,
        probe_size: int = 256,
        instruments: str = "economy",
        interventions: Sequence[Any] | Mapping[str, Sequence[Any]] = (),
        sinks: Sequence[Any] = (),
        statistics: Statistics = "keep",
        diagnose_at_switch: float | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        if not isinstance(probe_size, Integral) or probe_size < 2:
            raise InputError("a probe needs at least 2 samples", found=repr(probe_size))
        check_statistics(statistics)
        seconds = diagnose_at_switch
        if seconds is not None and not (isinstance(seconds, Real) and seconds > 0):
            raise InputError("diagnose_at_switch is a number of seconds", found=repr(seconds))
        if not isinstance(sinks, Sequence) or not all(callable(getattr(s, "log", None)) for s in sinks):
            raise InputError("sinks are a list of trackers with log(values, step)", found=repr(sinks)[:80])
        check_every(every, "every")
        select(instruments)
        check_interventions(interventions)
        self.every, self.probe_size, self.instruments = every, probe_size, instruments
        self.interventions, self.sinks = interventions, tuple(sinks)
        self.statistics, self.budget = statistics, diagnose_at_switch
        self.monitor: Any = None
        self.reports: list[tuple[str, Any]] = []
        self._networks: dict[str, Network] = {}
        self._agent: Any = None
        self._carried: Carried | None = None
        self._batch: tuple[Tensor, Tensor] | None = None  # what the probe was made of
        self._saved: dict[str, Any] | None = None
        self._task: str = ""
        self._announced: str | None = None  # a task that was announced before the saved state was taken up
        self._due: tuple[str, int] | None = (
            None  # a task that waits for its probe, and the time step it began at
        )

    @property
    def handles(self) -> list[Any]:
        """The attached interventions."""
        return [] if self._carried is None else self._carried.handles

    # -- SB3's hooks ----------------------------------------------------------------------------
    def _on_training_start(self) -> None:
        if self._agent is not None and self._agent is not self.model:
            raise InputError("this callback is attached to another agent", do="make a new SuppleCallback")
        if self.monitor is not None:
            return
        self._networks = networks(self.model)
        chosen(self._networks, self.interventions)
        if self._saved is not None:
            x, y = self._saved["batch"]
            self._attach((x.to(self.model.device), y.to(self.model.device)))

    def _on_step(self) -> bool:
        told = (self.locals.get("infos") or [{}])[0].get("task")
        if told is not None and str(told) != self._task:
            if self.monitor is None and not self._task:
                self._task = str(told)  # the first name, no switch
            else:
                self.task(str(told))
        if sb3_probe.is_replay(self.model):
            self._look(self._replay_is_ready())
        return True

    def _on_rollout_end(self) -> None:
        if not sb3_probe.is_replay(self.model):
            self._look(self.monitor is None or self._due is not None)

    def _replay_is_ready(self) -> bool:
        if self.monitor is not None:
            return self._due is not None and self.num_timesteps - self._due[1] >= self.probe_size
        enough = sb3_probe.available(self.model)
        begins = self.num_timesteps >= self.model.learning_starts and enough >= sb3_probe.MIN_PROBE
        return enough >= self.probe_size or begins

    def _look(self, ready: bool) -> None:
        """Take the probe if it is time: the first one, or the one of a new task."""
        if not ready:
            return
        batch = sb3_probe.newest(self.model, self.probe_size)
        if self.monitor is None:
            self._attach(batch)
        elif self._due is not None:
            (name, _), self._due, self._batch = self._due, None, batch
            self.monitor.task(name, self._probe(batch))

    # -- what a user calls ----------------------------------------------------------------------
    def task(self, name: str) -> None:
        """Announce that the agent is on another task from now on."""
        if not isinstance(name, str):
            raise InputError("a task is announced by its name", found=repr(name), do='callback.task("1")')
        if self.monitor is None:
            if self._saved is not None:
                self._announced = name
                return
            agent = getattr(self, "model", None)
            if (
                agent is not None and agent.num_timesteps
            ):  # a task was over before the first look at the agent
                set_statistics(agent.get_vec_normalize_env(), self.statistics)
            self._task = name
            return
        if self.budget is not None:
            self.reports.append((self._task, self.diagnose(budget=self.budget)))
        set_statistics(self._agent.get_vec_normalize_env(), self.statistics)
        for handle in self.handles:
            handle.task(name)
        self._task, self._due = name, (name, int(self._agent.num_timesteps))

    def diagnose(self, **options: Any) -> Any:
        """A diagnosis from what the monitor has seen; refuses before the first rollout."""
        return self._watching().diagnose(**options)

    def policy_report(self, report: Any = None, falls_short: bool | None = None) -> Any:
        """What the policy itself shows on the newest experience, see `supple.diagnose.policy.policy_report`.

        Args:
            report: a diagnosis (``callback.diagnose()``), whose step 0 tells a loss of plasticity from a failure to
                explore; without it the latter is not measured.
            falls_short: whether returns stay below those of a fresh agent on this task; None if nobody knows.
        """
        from supple.diagnose.policy import policy_report

        if report is not None and not hasattr(report, "finding"):
            raise InputError("report is what callback.diagnose() returned", found=type(report).__name__)
        self._watching()
        policy, space = next(iter(self._networks.values())), self._agent.action_space
        batch = sb3_probe.newest(self._agent, self.probe_size)
        outputs, kind, deviation = policy_now(policy, batch)
        half = torch.as_tensor(space.high - space.low).flatten() / 2 if hasattr(space, "high") else None
        return policy_report(
            outputs,
            kind,
            deviation=deviation,
            half_range=half,
            loss=None if report is None else report.finding("plasticity_loss"),
            falls_short=falls_short,
        )

    def detach(self) -> None:
        """Remove every hook from the agent."""
        if self._carried is not None:
            self._carried.detach()
        if self.monitor is not None:
            self.monitor.detach()

    def state_dict(self) -> dict[str, Any]:
        """State of the monitor and the handles, to be saved beside ``model.save``; tensors and plain types."""
        if self.monitor is None or self._batch is None:
            return {}
        return {
            "version": STATE_VERSION,
            "task": self._task,
            "due": None if self._due is None else list(self._due),
            "batch": [t.detach().cpu().clone() for t in self._batch],
            "monitor": self.monitor.state_dict(),
            "handles": [h.state_dict() for h in self.handles],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore; taken up at once, or when the next ``learn`` begins. An empty state is one before any look."""
        if not isinstance(state, Mapping):
            raise InputError("this is not a state of a SuppleCallback", found=type(state).__name__)
        if not state:
            return
        if state.get("version") != STATE_VERSION or set(state) != STATE_KEYS:
            found = state.get("version") if set(state) == STATE_KEYS else sorted(set(state) ^ STATE_KEYS)
            raise InputError("this is not a state of a SuppleCallback of this version", found=found)
        if self._carried is None:
            self._saved = dict(state)
        else:
            _take_up(state, self._carried, self.monitor)
            self._restore(state)

    # -- inside ---------------------------------------------------------------------------------
    def _watching(self) -> Any:
        if self.monitor is None:
            raise InputError("nothing has been observed yet", do="call learn() with this callback first")
        return self.monitor

    def _probe(self, batch: tuple[Tensor, Tensor]) -> tuple[Any, Tensor]:
        return next(iter(self._networks.values())).inputs(*batch), batch[1]

    def _attach(self, batch: tuple[Tensor, Tensor]) -> None:
        import supple

        policy = next(iter(self._networks.values()))
        monitor = supple.Monitor(
            policy.module,
            policy.optimizer,
            probe=self._probe(batch),
            loss_fn=imitation_loss,
            every=self.every,
            instruments=self.instruments,
            forward=policy_outputs,
            sinks=self.sinks,
        )
        with ExitStack() as undo:
            undo.callback(monitor.detach)
            carried = Carried(self.model, self._networks, self.interventions, batch)
            undo.callback(carried.detach)
            if self._saved is not None:  # a state that does not fit leaves nothing attached, and stays
                _take_up(self._saved, carried, monitor)
            undo.pop_all()
        self.monitor, self._carried, self._agent, self._batch = monitor, carried, self.model, batch
        if self._saved is not None:
            self._restore(self._saved)
        elif self._task:
            self.monitor.task(self._task)

    def _restore(self, saved: Mapping[str, Any]) -> None:
        """What else the saved state says, once monitor and handles have taken it up."""
        self._saved = None
        x, y = saved["batch"]
        self._batch = (x.to(self._agent.device), y.to(self._agent.device))
        self._task = str(saved["task"])
        self._due = None if saved["due"] is None else (str(saved["due"][0]), int(saved["due"][1]))
        announced, self._announced = self._announced, None
        if announced is not None:
            self.task(announced)


def _take_up(saved: Mapping[str, Any], carried: Carried, monitor: Any) -> None:
    """What a saved state says of the interventions and the monitor."""
    carried.load(saved["handles"])
    monitor.load_state_dict(saved["monitor"])
