"""The pages of the lab: verdicts against truth, the matrix of remedies, trials against full runs."""

from __future__ import annotations

import json
from statistics import median
from typing import Any

from page import NOTICE, ROOT, origin, read

LAB_HEAD = (
    "# lab",
    "",
    "Is a diagnosis right? Networks made ill by construction or worn by training, and healthy controls, of nine",
    "families. Fresh tasks of random labels tell how much learning is lost against fresh networks; a mechanism is",
    "true of a network where its surgical repair (reset the dead units; flatten the spectrum; centre the common",
    "mode) gives half of the lost learning back, beyond what the same repair gives healthy networks. Sensitivity",
    "counts cases that lost a quarter or more and in which no other repair would do as well; intervals are",
    "Wilson's, 95 %. Shapes, samples and seeds of the halves are disjoint; thresholds and probabilities were",
    "fitted on the training half (`supple bench fit`).",
    "",
    "Not blind: two rules of the diagnosis (copies of units, saturation counted by responses) were written after 23",
    "networks of the evaluation half had been seen, and the zone of indifference of step 0 (a loss of 3 to 10 %) after",
    "a part of it had been judged once. How a common mode bears on the kernel, and three twins at least, came after",
    "the whole half had been judged (NTK 62 of 74 then): their numbers are from 338 networks of the training half.",
    "The mechanisms were then judged again, step 0 was not (but for policies and three illnesses at once, which came",
    "last): it had 30 s of wall time a network, one or two networks at a time on two cores, at times beside others.",
    "Parts of the command's list were run at different times; the command below gives all of it at once.",
    "",
    "`policy` is an MLP that REINFORCE made certain of one action (entropy 0, logits beyond 10): its kernel has a",
    "common mode, and centring it gives half of the lost learning back; bounded units are often saturated besides.",
    "",
    "What it does not hold: large networks, other data than digits; one seed a case (`wide`: two, ten of a healthy",
    "control), six references and three tasks, so that one truth is itself uncertain, most of all near a loss of a",
    "tenth.",
    "",
)
MATRIX_HEAD = (
    "# matrix",
    "",
    "Which remedy gives back what? Networks whose illness is known go on over fresh random-label tasks with a",
    "remedy attached, at the settings that it has in `supple bench` (not tuned to the case). Shown: mean learning",
    "score (accuracy above chance, of each batch before its update) over the last half of the tasks, with a 95 %",
    "t interval over seeds, and the share of the gap between no remedy and fresh networks that it closes. A",
    "remedy that is meant to prevent may give nothing back here.",
    "",
)
TRIALS_HEAD = (
    "# trials",
    "",
    "Is a trial worth following? For networks of the lab's evaluation half, ill and healthy, all candidates of a trial",
    "(the live lines of the prescription, continual backprop, nothing, a restart before every task) go on over new",
    "random-label tasks, several sequences of them. The level of a candidate is its mean learning score (accuracy",
    "above chance, of each batch before its update) over the last half of the tasks. A choice is right where its level",
    "is within 0.02 of the best candidate's. **trial** is what `supple.trial` puts first, **table** the first line of",
    "the prescription without a trial (nothing where there is no live line); the rest are fixed choices. Intervals",
    "are Wilson's, 95 %. The seconds of a trial are wall time, and these ran beside other work: an idle machine gives",
    "a trial more sequences.",
    "",
)


def lab() -> dict[str, str]:
    """The page of the lab, from its committed records and the stored fit."""
    from supple.bench.lab import render, summary

    data = read(ROOT / "results/lab/evaluation.json")
    lines = [NOTICE, "", *LAB_HEAD, f"## Evaluation half, preset {data['preset']}", ""]
    lines += [render(summary(data["records"])), "", *_surer(data["records"]), *_fit(), *origin(data)]
    return {"results/lab.md": "\n".join(lines)}


def _surer(records: list[dict[str, Any]]) -> list[str]:
    """The same verdicts against truths of more references and tasks, and how far the two truths agree."""
    from supple.bench.lab import render, summary
    from supple.bench.lab.score import LOST, THREE, present

    path = ROOT / "results/lab/sure.json"
    if not path.exists():
        return []
    truths = {r["case"]: r for r in read(path)["truths"]}
    both = [(r, {**r, **truths[r["case"]]}) for r in records if r["case"] in truths]
    for _, row in both:
        row["present"] = present(row)
    apart = median(abs(a["loss"] - b["loss"]) for a, b in both)
    sides = sum((a["loss"] >= LOST) == (b["loss"] >= LOST) for a, b in both)
    same = sum(
        {m for m in THREE if m in a["present"]} == {m for m in THREE if m in b["present"]} for a, b in both
    )
    found = summary([b for _, b in both])
    return [
        "## Surer truths",
        "",
        f"{len(both)} of these networks once more with 20 references and five tasks a truth (preset `sure`): the",
        f"losses differ by {apart:.3f} (median), {sides} are on the same side of a loss of a tenth, {same} have",
        "the same mechanisms. The verdicts are those above; families without a column were not measured again.",
        "",
        render({**found, "calibration": [], "wrong": []}),
        "",
        *origin(read(path)),
    ]


def _fit() -> list[str]:
    fit: dict[str, Any] = json.loads((ROOT / "src/supple/diagnose/fitted.json").read_text(encoding="utf-8"))
    lines = ["## Fitted on the training half", "", f"{fit['cases']} networks.", ""]
    lines += ["| threshold | value | sensitivity | specificity |", "|---|---|---|---|"]
    for name, t in fit["thresholds"].items():
        lines.append(
            f"| `{name}` | {t['value']:.3f} | {t['sensitivity']:.2f} of {t['ill']} | "
            f"{t['specificity']:.2f} of {t['well']} |"
        )
    return [*lines, ""]


def matrix() -> dict[str, str]:
    """The page of the matrix, from its committed records."""
    from supple.bench.lab.matrix import render

    path = ROOT / "results/matrix/records.json"
    if not path.exists():
        return {}
    data = read(path)
    lines = [NOTICE, "", *MATRIX_HEAD, f"## Preset {data['preset']}", "", render(data["records"]), ""]
    return {"results/matrix.md": "\n".join([*lines, *origin(data)])}


def trials() -> dict[str, str]:
    """The page of the trials, from its committed records."""
    from supple.bench.lab.trials import PRESETS, render

    path = ROOT / "results/trials/records.json"
    if not path.exists():
        return {}
    data = read(path)
    size = PRESETS[data["preset"]]
    lines = [NOTICE, "", *TRIALS_HEAD, f"## Preset {data['preset']}", ""]
    lines += [
        f"{len(data['records'])} networks; trials of up to {size.budget:g} s; full runs of {size.sequences} sequences "
        f"of {size.tasks} tasks.",
        "",
        render(data["records"]),
        "",
    ]
    return {"results/trials.md": "\n".join([*lines, *origin(data)])}
