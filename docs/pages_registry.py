"""The pages made from the registries: instruments and interventions."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from page import NOTICE


def instruments() -> dict[str, str]:
    """The page of instruments: what the registry knows, and an entry for each record that they write."""
    from instrument_entries import ENTRIES, MONITOR

    from supple.observe.instruments import BUNDLES, available

    table = available()
    written = {record for item in table.values() for record in item.records}
    wrong = [f"no entry for record {r!r}" for r in sorted(written - set(ENTRIES))]
    wrong += [f"no instrument writes {r!r}" for r in sorted(set(ENTRIES) - written)]
    if wrong:
        raise SystemExit(
            f"{'; '.join(wrong)}; where: docs/instrument_entries.py; do: mend it, then make docs"
        )
    lines = [NOTICE, "", *INSTRUMENTS_HEAD]
    for cost in (*BUNDLES, "training"):
        where = f"In the bundles {', '.join(BUNDLES[BUNDLES.index(cost) :])}." if cost in BUNDLES else ALONE
        lines += [f"## Cost `{cost}`", "", where, ""]
        for item in (i for i in table.values() if i.cost == cost):
            text = " ".join(inspect.cleandoc(item.measure.__doc__ or "").split()).replace("``", "`")
            needs = ", ".join(sorted(item.needs)) or "nothing of the probe"
            least = f"at least {item.minimum} samples" if item.minimum > 1 else "any number of samples"
            lines += [f"### `{item.name}`", "", text, "", f"Reads {needs}; {least}.", ""]
            lines += [part for record in item.records for part in entry(record, ENTRIES[record])]
    lines += ["## Rows that a Monitor adds", ""]
    lines += [part for record, found in MONITOR.items() for part in entry(record, found)]
    return {"instruments.md": "\n".join(lines)}


ALONE = "In no bundle: asked for by name, as it trains copies for seconds."
INSTRUMENTS_HEAD = (
    "# Instruments",
    "",
    "What `supple.observe.observe`, `supple.diagnose` and `supple.Monitor` write down. A value is a record: its",
    "instrument, layer (`*`: pooled), part (a packed block, a gate or a group), variant, value, error (relative, of",
    "estimates), samples, status and note. The status is `measured`; `not_measured` with the reason in the note; or",
    "`invalid` (NaN, Inf, a failed loss). Nothing is left out in silence: an output layer, an embedding and a",
    "layer that could not be read have rows that say so.",
    "",
    "Letters: N samples, U units, P positions (pixels, tokens; 1 without), W a weight matrix (m, n), s its singular",
    "values in descending order, k = min(m, n), C classes, n inputs of a kernel. Units are counted as units, positions",
    "never.",
    "",
)


def entry(record: str, found: Any) -> list[str]:
    """One record as a list item with what is known of it."""
    variants = [f"`{v}`" + (f" ({why})" if why else "") for v, why in found.variants.items() if v or why]
    details = [
        f"range {found.range}",
        f"rows: {found.rows}",
        *([f"variants {', '.join(variants)}"] if variants else []),
        *([f"not measured: {found.missing}"] if found.missing != "–" else []),
        *([f"formula in `supple.functional.{found.function}`"] if found.function else []),
        *([f"array {found.arrays}"] if found.arrays else []),
        *([f"source: {found.source}"] if found.source != "–" else []),
    ]
    return [f"* **`{record}`**: {found.formula}.", f"  {'; '.join(details)}.", ""]


def interventions() -> dict[str, str]:
    """The page of interventions, from the classes themselves: their docstrings, defaults and facts."""
    from supple import nn
    from supple.interventions import available

    table = {n: c for n, c in available().items() if c.__module__.startswith("supple.")}
    lines = [
        NOTICE,
        "",
        *INTERVENTIONS_HEAD,
        "| method | addresses | cost | level | evidence |",
        "|---|---|---|---|---|",
    ]
    for name, cls in table.items():
        addressed = "–" if cls.mechanism is None else str(cls.mechanism).replace("_", " ")
        lines.append(
            f"| [{name}](#{name.lower()}) | {addressed} | {cls.cost} | {cls.level} | {cls.evidence} |"
        )
    lines += ["", "In the architecture, from `supple.nn`:", ""]
    for name in ("CReLU", "DeepFourier", "convert_", "insert_norms_", "svf_", "ForgettingAttention"):
        first = (inspect.getdoc(getattr(nn, name)) or "").split("\n\n")[0].replace("\n", " ")
        lines.append(f"* `{name}`: {first}")
    for name, cls in table.items():
        lines += ["", f"## {name}", "", *prose(cls)]
    return {"interventions.md": "\n".join([*lines, ""])}


def prose(cls: type) -> list[str]:
    """A class's docstring as Markdown: arguments as a list with their defaults, the example as code."""
    defaults = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
    lines: list[str] = []
    part = ""  # "", "Args", "Raises"
    code = False
    for line in (inspect.getdoc(cls) or "").splitlines():
        text = re.sub(r"::$", ":", line.replace("``", "`"))
        if line.startswith(">>>") and not code:
            code = True
            lines += ["```python"]
        if code:
            lines.append(line)
        elif re.fullmatch(r"(Args|Raises|Returns):", line):
            part = line[:-1]
            lines += ["**Arguments**" if part == "Args" else f"**{part}**", ""]
        elif part and (found := re.match(r"    (\w+(?:, \w+)*): (.*)", text)):
            names = found[1].split(", ")
            shown = ", ".join(f"`{n}`" + (f" = `{defaults[n]!r}`" if n in defaults else "") for n in names)
            lines.append(f"* {shown if part == 'Args' else f'`{found[1]}`'}: {found[2]}")
        else:
            lines.append(f"  {text.strip()}" if part and text.strip() else text)
    return [*lines, "```"] if code else lines


INTERVENTIONS_HEAD = (
    "# Interventions",
    "",
    "Each is attached with one line, `supple.interventions.NAME(...).attach(model, optimizer)`, and described where it",
    "is written; this page is made from there. Level: 1 training trick, 2 spectral or frequency domain, 3",
    "architecture. `unverified` evidence: the source could not be read in full, or its claim was not confirmed here.",
    "Costs in figures: [overhead](overhead.md). Which of them fits a network: `supple.diagnose`.",
    "",
)
