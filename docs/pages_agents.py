"""The pages of the studies of agents: returns beside the oracle, and how the networks are in the end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from page import NOTICE, origin, read

LEARNS = 0.95  # trainability from which a network counts as able
HEADS = {
    "rl-gym": (
        "Does an agent stop learning when its observations move? PPO with separate networks for policy and values;",
        "every task adds another constant vector to the observations, the first has none. The settings of the methods",
        "were chosen on CartPole with other seeds, two or three values each.",
    ),
    "rl-minatar": (
        "Does an agent stop learning from game to game? Double DQN, one convolutional network, the games one after",
        "another; buffer and ε go on. A return counts as a share of the oracle's mean in the same task.",
    ),
}
HEAD = (
    "`fresh` is the oracle: new networks and optimizer for every task. After Tang et al. 2025 (arXiv 2506.00592), at a",
    "budget of minutes a run instead of theirs (`--preset paper`), so no figure is comparable with a published one.",
    "",
    "**return**: mean over the tasks after the first, each the mean over its episodes. **share**: of the gap between",
    "plain and oracle, bootstrap over seeds; it may be negative. **against plain**: paired over seeds.",
    "",
)
BOUNDARY = (
    ". What is named `…_boundary` acts in the announcement of a task, before its first rollout, so it has to be told "
    "of the boundary, as the oracle is: where nobody tells it, it does not act. `shrink_perturb` is told as well, but "
    "acts after the first update of the task (and shrinks by 0.5, not 0.3)"
)
HEALTH_HEAD = (
    "**In the end**: after the last task, means over seeds. Entropy and largest |logit| say whether the policy is",
    "saturated; dormant and GraMa are shares of units at τ = 0.025; trainability is how well copies of the networks",
    "learn random functions of the last observations, 1 is a fresh network (`supple.bench.agent_probe`). It is",
    "supervised, so it tells a policy that no longer explores from a network that no longer learns; *with unlearning*",
    "the old answers count too.",
    "",
)


def agents_page(path: Path) -> str:
    """`rl-gym` and `rl-minatar`: verdict, returns, courses and health of each suite."""
    data = read(path)
    name, answer = path.parent.name, data["answer"]
    lines = [NOTICE, "", f"# {name}", "", *HEADS[name], "", *HEAD, *HEALTH_HEAD]
    lines += [f"{answer['seeds']} seeds, 95 % intervals.", ""]
    for protocol in dict.fromkeys(a["protocol"] for a in answer["agents"]):
        agents = [a for a in answer["agents"] if a["protocol"] == protocol]
        agents.sort(key=lambda a: -a["returns"]["value"])
        lines += [f"## {protocol}", "", _verdict(agents), "", *_returns(agents), "", "In the end:", ""]
        lines += [*_health(agents), "", *_saturation(protocol, agents)]
    note = [data["note"], ""] if "note" in data else []
    return "\n".join([*lines, *note, *origin(data)])


def _returns(agents: list[dict[str, Any]]) -> list[str]:
    """Levels, shares, and the course over the tasks: in oracles where the study counts in oracles."""
    form = ".2f" if agents[0]["relative"] else ".0f"
    lines = ["| method | return | share | against plain | " + " | ".join(agents[0]["tasks"]) + " |"]
    lines.append("|---|---|---|---|" + "---|" * len(agents[0]["tasks"]))
    for a in agents:
        over = a["over_plain"] and a["over_plain"]["difference"]
        course = ["–" if v is None else format(v, form) for v in a["relative"] or a["course"]]
        levels = [_interval(a["returns"], form), _interval(a["share"], ".2f"), _interval(over, "+" + form)]
        lines.append("| " + " | ".join([a["method"], *levels, *course]) + " |")
    return lines


def _health(agents: list[dict[str, Any]]) -> list[str]:
    heads = list(agents[0]["health"])
    shown = [h.replace("|", "\\|") for h in heads]
    lines = ["| method | " + " | ".join(shown) + " |", "|---|" + "---|" * len(heads)]
    for a in agents:
        cells = ["–" if v is None else f"{v:.2f}" for v in a["health"].values()]
        lines.append("| " + " | ".join([a["method"], *cells]) + " |")
    return lines


def _verdict(agents: list[dict[str, Any]]) -> str:
    """Is there a loss, and does a remedy give half of it back? From the intervals alone."""
    by = {a["method"]: a for a in agents}
    plain, oracle = by["plain"]["returns"]["value"], by["fresh"]["returns"]["value"]
    over = by["fresh"]["over_plain"]["difference"]
    form = ".2f" if agents[0]["relative"] else ".0f"
    if over["lo"] <= 0:
        return (
            f"No loss is seen: the oracle has {oracle:{form}}, the plain agent {plain:{form}} (difference "
            f"{_interval(over, '+' + form)}); what transfers from task to task outweighs what is lost, if anything is."
        )
    half = [a for a in agents if a["method"] != "fresh" and a["share"] and a["share"]["value"] >= 0.5]
    names = ", ".join(f"{a['method']} ({a['share']['value']:.0%})" for a in half)
    best = max(
        (a for a in agents if a["method"] not in ("fresh", "plain")), key=lambda a: a["returns"]["value"]
    )
    recovered = f"half of the gap or more is closed by {names}" if half else (
        f"no remedy closes half of the gap; the best is {best['method']} ({best['share']['value']:.0%})"
    )  # fmt: skip
    if any(_at_boundary(a) for a in half):
        recovered += BOUNDARY
    gap = _interval(over, "+" + form)
    text = f"The plain agent has {plain:{form}}, the oracle {oracle:{form}}: a loss ({gap}); {recovered}."
    health = by["plain"]["health"]
    able, entropy = health.get("policy trainability"), health.get("policy entropy")
    if able is None or entropy is None or able < LEARNS:
        return text
    return (
        f"{text} Supervised, the plain policy still learns as well as a fresh one ({able:.2f}), with an entropy of "
        f"{entropy:.2f} nats against the oracle's {by['fresh']['health']['policy entropy']:.2f}: what is lost here is "
        "exploration more than the ability to learn."
    )


def _at_boundary(agent: dict[str, Any]) -> bool:
    return agent["method"].endswith("_boundary")


def _saturation(protocol: str, agents: list[dict[str, Any]]) -> list[str]:
    """How well the threshold of policy saturation tells collapsed agents from others, where ends of tasks are kept."""
    from supple.bench.statistics import wilson
    from supple.bench.studies.rl_gym import COLLAPSED, saturation_told
    from supple.diagnose.policy import ENTROPY

    kept = [a for a in agents if a.get("ends")]
    if not kept:
        return []
    told = saturation_told(protocol, [a["ends"] for a in kept])

    def share(hits: int, n: int) -> str:
        if not n:
            return "none"
        lo, hi = wilson(hits, n)
        return f"{hits} of {n} ({hits / n:.2f} [{lo:.2f}, {hi:.2f}])"

    return [
        f"The policy report calls a policy saturated below {ENTROPY:g} of the largest entropy. At the ends of the "
        f"tasks of {', '.join(a['method'] for a in kept)} (mean entropy of the last tenth of the iterations):",
        "",
        "| | |", "|---|---|",
        f"| collapsed (return at the end at most {COLLAPSED[protocol][0]:g}) and called saturated: sensitivity | "
        f"{share(told.saturated, told.collapsed)} |",
        f"| not collapsed and not called saturated: specificity | {share(told.open, told.others)} |",
        "",
    ]  # fmt: skip


def _interval(e: dict[str, float] | None, form: str) -> str:
    """``value [lo, hi]``, the value alone without an interval, or a dash."""
    if not e or e.get("value") is None:
        return "–"
    text = format(e["value"], form)
    if e.get("lo") is None or math.isnan(e["lo"]):
        return text
    return f"{text} [{e['lo']:{form}}, {e['hi']:{form}}]"
