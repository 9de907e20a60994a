"""Pages: one HTML file each, complete in itself; written to a temporary name and put in place at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from supple.diagnose.types import DiagnosisReport, Evidence, Finding
from supple.report import curves, mechanisms
from supple.report.data import Story
from supple.report.style import Svg, number
from supple.report.words import MECHANISM_NAMES, verdict
from supple.status import Status

STATUS_NAMES = {
    Status.PRESENT: "present",
    Status.ABSENT: "absent",
    Status.INCONCLUSIVE: "inconclusive",
    Status.NOT_MEASURED: "not measured",
    Status.INVALID: "invalid",
}
#: a gap to a fresh network from which the title speaks of a loss
CLEAR_LOSS = 0.1
#: a sign beside the word, so that colour never carries the meaning alone
SIGNS = {
    Status.PRESENT: "●",
    Status.ABSENT: "○",
    Status.INCONCLUSIVE: "◐",
    Status.NOT_MEASURED: "–",
    Status.INVALID: "×",
}


def write_story(story: Story, path: str | Path) -> Path:
    """The demo's page: verdict, figures, findings, prescription, coverage, how to reproduce."""
    first = story.worn[0] if story.worn else None
    drawings = [
        curves.accuracy(story),
        curves.dead(story),
        mechanisms.units(story.worn, story.fresh),
        mechanisms.spectra(story.spectra, note=f"Seed {story.seeds[0]}.") if story.spectra else None,
        mechanisms.kernel(story.worn, story.fresh),
        curves.stability_map(story),
    ]
    return write(
        path,
        "story.html",
        title=_title(story),
        story=story,
        sentences=verdict(story),
        figures=[d for d in drawings if d is not None],
        report=first,
        seeds=[
            (seed, finding_rows(report.findings))
            for seed, report in zip(story.seeds, story.worn, strict=False)
        ],
        control=finding_rows(story.fresh[0].findings) if story.fresh else [],
    )


def write_diagnosis(report: DiagnosisReport, path: str | Path) -> Path:
    """The page of one diagnosis: findings with evidence, figures, prescription, coverage."""
    drawings = [
        mechanisms.units([report]),
        _own_spectra(report),
        mechanisms.kernel([report], name="this network"),
    ]
    present = [MECHANISM_NAMES[f.mechanism] for f in report.present]
    title = f"Diagnosis: {', '.join(present)} present" if present else "Diagnosis: no mechanism present"
    return write(
        path,
        "diagnosis.html",
        title=title,
        figures=[d for d in drawings if d is not None],
        report=report,
        rows=finding_rows(report.findings),
    )


def finding_rows(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """One row a finding, evidence included, as words and numbers."""
    return [
        {
            "name": MECHANISM_NAMES[f.mechanism],
            "status": STATUS_NAMES[f.status],
            "key": f.status.value,
            "sign": SIGNS[f.status],
            "severity": "–" if f.severity is None else f"{f.severity:.2f}",
            "probability": "–" if f.probability is None else f"{f.probability:.2f}",
            "layers": ", ".join(f.layers) if f.status is Status.PRESENT else "",
            "reason": f.reason,
            "advice": f.advice,
            "evidence": [evidence_cells(e) for e in shown_evidence(f)],
        }
        for f in findings
    ]


def shown_evidence(finding: Finding) -> Sequence[Evidence]:
    """Pooled values first, then the layers."""
    return sorted(finding.evidence, key=lambda e: (e.layer != "*", not e.decides))


def evidence_cells(e: Evidence) -> tuple[str, ...]:
    """Name, layer, value with its interval, reference, threshold, samples, note.

    >>> evidence_cells(Evidence("grama", 0.4, 0.35, 0.45, reference=0.02, samples=256))[:4]
    ('grama', 'all layers', '0.400 [0.350, 0.450]', '0.020')
    """
    value = number(e.value)
    if e.lo == e.lo and e.hi == e.hi:
        value += f" [{number(e.lo)}, {number(e.hi)}]"
    name = e.name if e.decides else f"{e.name} (beside)"
    layer = "all layers" if e.layer == "*" else e.layer
    samples = str(e.samples) if e.samples else "–"
    return (name, layer, value, number(e.reference), number(e.threshold), samples, e.note)


def _own_spectra(report: DiagnosisReport) -> Svg | None:
    nothing: list[float] = []  # the report keeps no arrays of its twins
    own = {
        name.removeprefix("spectrum/"): (nothing, [float(v) for v in values.flatten()])
        for name, values in report.arrays.items()
        if name.startswith("spectrum/")
    }
    return mechanisms.spectra(own, ("fresh network", "this network")) if own else None


def _title(story: Story) -> str:
    worn, reference = story.arm("worn"), story.arm("reference")
    if worn is None or reference is None:
        return "Loss of plasticity, measured"
    w, r = worn.late(story.window), reference.late(story.window)
    if w.hi >= r.lo:
        return "No loss of plasticity was seen in this run"
    if r.mean - w.mean < CLEAR_LOSS:
        return "A network that learns a little worse than a fresh one"
    return "A network that lost its ability to learn"


def write(path: str | Path, template: str, **values: Any) -> Path:
    """Render a template and put it in place at once."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("supple.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(**values)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, target)
    return target
