"""The rules by which a claim is judged from the committed figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean

from claims_data import CONTROL, HOLDS, NEW, NOT_HERE, PARTLY, Data, Verdict


def _shares(found: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name} {'no gap' if value != value else format(value, '.0%')}" for name, value in found.items()
    )


def long_course(method: str, falls: bool) -> Callable[[Data], Verdict]:
    """End accuracy falls by two points or more from the first block of tasks to the last, or does not."""

    def judge(data: Data) -> Verdict:
        run = data.long[method]
        first, last = (run["rows"][i]["end_accuracy"] for i in (0, -1))
        best = max(r["end_accuracy"] for r in run["rows"])
        text = f"{method}, {run['tasks']} tasks, one seed: {first:.3f} in the first block, {best:.3f} in the best"
        return HOLDS if (last < first - 0.02) is falls else NOT_HERE, f"{text}, {last:.3f} in the last"

    return judge


def matching_pays(data: Data) -> Verdict:
    """The first line of the prescription against the famous remedy and against nothing, over all networks."""
    from supple.bench.lab.trials import FAMOUS, NOTHING, summary

    found = summary(data.trials, restart=False)
    who = ("trial", "table", FAMOUS, NOTHING)
    text = ", ".join(f"{w} {found[w]['right']}/{found[w]['n']}" for w in who)
    better = [found["table"]["right"] > found[w]["right"] for w in (FAMOUS, NOTHING)]
    return _count(better), f"within 0.02 of the best remedy, first choice of: {text}"


def _count(flags: list[bool]) -> str:
    return HOLDS if all(flags) else PARTLY if any(flags) else NOT_HERE


def lost(data: Data) -> Verdict:
    gaps = {p: data.tables[p]["plain"]["against_fresh"] for p in NEW}
    text = ", ".join(f"{p} {g['value']:+.2f} [{g['lo']:+.2f}, {g['hi']:+.2f}]" for p, g in gaps.items())
    return _count([g["hi"] < 0 for g in gaps.values()]), f"plain against fresh over the last tenth: {text}"


def linear_level(data: Data) -> Verdict:
    pairs = {p: (data.last(p, "plain"), data.last(p, "linear")) for p in NEW}
    text = ", ".join(f"{p} {a:.2f} against {b:.2f}" for p, (a, b) in pairs.items())
    return _count([a <= b for a, b in pairs.values()]), f"plain against the linear model: {text}"


def eases(method: str) -> Callable[[Data], Verdict]:
    """Slows without stopping: part of the gap is closed, a part stays."""

    def judge(data: Data) -> Verdict:
        found = data.recovered(method)
        return _count([0.05 < v < 0.9 for v in found.values()]), f"share of the gap closed: {_shares(found)}"

    return judge


def keeps(method: str, enough: float = 0.9) -> Callable[[Data], Verdict]:
    """Prevents: nearly all of the gap is closed."""

    def judge(data: Data) -> Verdict:
        found = data.recovered(method)
        return _count([v >= enough for v in found.values()]), f"share of the gap closed: {_shares(found)}"

    return judge


def only_one(data: Data) -> Verdict:
    means = {
        m: fmean(data.recovered(m).values())
        for m in data.tables[NEW[0]]
        if m not in ("plain", "fresh", "linear")
    }
    order = sorted(means.items(), key=lambda item: -item[1])
    better = [m for m, v in order if v > means["cbp"]]
    text = ", ".join(f"{m} {v:.0%}" for m, v in order)
    return NOT_HERE if better else HOLDS, f"mean share of the gap closed over {len(NEW)} protocols: {text}"


def sequence(data: Data) -> Verdict:
    falls = {n: data.tables[n]["plain"]["from_peak"]["value"] for n in ("digits-permuted", CONTROL)}
    text = ", ".join(f"{n} {v:.2f}" for n, v in falls.items())
    holds = falls[CONTROL] < 0.2 * falls["digits-permuted"]
    return HOLDS if holds else PARTLY, f"fall below its own peak: {text}"


def linear_keeps(data: Data) -> Verdict:
    falls = {p: data.tables[p]["linear"]["from_peak"]["value"] for p in NEW}
    text = ", ".join(f"{p} {v:.2f}" for p, v in falls.items())
    return _count([v < 0.03 for v in falls.values()]), f"fall of the linear model below its own peak: {text}"


def fourier_flat(data: Data) -> Verdict:
    falls = {p: data.tables[p]["fourier"]["from_peak"]["value"] for p in NEW}
    text = ", ".join(f"{p} {v:.2f}" for p, v in falls.items())
    return _count([v < 0.03 for v in falls.values()]), f"fall below its own peak: {text}"


def spectral_beats_l2(data: Data) -> Verdict:
    pairs = {p: data.last(p, "spectral") - data.last(p, "l2") for p in NEW}
    text = ", ".join(f"{p} {v:+.2f}" for p, v in pairs.items())
    return _count([v > 0 for v in pairs.values()]), f"spectral minus L2, last tenth: {text}"


def regrama_beats_redo(data: Data) -> Verdict:
    pairs = {p: data.last(p, "regrama") - data.last(p, "redo") for p in NEW}
    text = ", ".join(f"{p} {v:+.2f}" for p, v in pairs.items())
    gains = {r["network"]: r["gain"]["difference"] for r in data.grama["repairs"]}
    more = ", ".join(f"{n} {g['value']:+.3f} [{g['lo']:+.3f}, {g['hi']:+.3f}]" for n, g in gains.items())
    clear = [g["lo"] > 0 for g in gains.values()] + [v > 0.01 for v in pairs.values()]
    return _count(clear), f"ReGraMa minus ReDo: {text}; worn {more}"


def grama_sees_more(data: Data) -> Verdict:
    rows = [c for c in data.grama["comparisons"] if c["tau"] == 0.1 and c["ratio"] is not None]
    text = ", ".join(
        f"{c['network']} {c['ratio']['value']:.2f} [{c['ratio']['lo']:.2f}, {c['ratio']['hi']:.2f}]"
        for c in rows
    )
    residual = next(c["ratio"] for c in rows if c["network"] == "ResNet-8")
    verdict = HOLDS if residual["lo"] >= 2 else PARTLY if residual["lo"] > 1 else NOT_HERE
    return verdict, f"GraMa / dormant units, τ = 0.1: {text}"


def moves(instrument: str, up: bool) -> Callable[[Data], Verdict]:
    """An instrument rises (or falls) over the stream in the plain network."""

    def judge(data: Data) -> Verdict:
        found = data.course(instrument)
        text = ", ".join(f"{p} {a:.3g} → {b:.3g}" for p, (a, b) in found.items())
        return _count(
            [(b > a) is up for a, b in found.values()]
        ), f"`{instrument}`, plain, first and last look: {text}"

    return judge


def churn_tells(data: Data) -> Verdict:
    rows = {n: data.instruments[n] for n in data.instruments if n.startswith("churn")}
    text = "; ".join(
        f"{n}: within {r['within']['value']:+.2f} [{r['within']['lo']:+.2f}, {r['within']['hi']:+.2f}]"
        for n, r in rows.items()
    )
    best = max(data.instruments.values(), key=lambda r: r["strength"])
    text += f"; the strongest instrument of all is `{best['instrument']}` ({best['strength']:.2f})"
    signs = [r["within"]["hi"] < 0 for r in rows.values()]
    return _count(signs), f"rank correlation with the next task's learning: {text}"


def matched(origin: str, arm: str, enough: float = 0.5) -> Callable[[Data], Verdict]:
    """The remedy gives back half of what is lost or more on networks with the illness."""

    def judge(data: Data) -> Verdict:
        rows = [
            o
            for o in dict.fromkeys(r["origin"] for r in data.matrix)
            if o.startswith(origin) and o != "healthy"
        ]
        found = {o: data.repairs(o, arm) for o in rows}
        return _count([v >= enough for v in found.values()]), f"share given back: {_shares(found)}"

    return judge


def indirect(data: Data) -> Verdict:
    rows = [o for o in dict.fromkeys(r["origin"] for r in data.matrix) if o.startswith("rank collapse")]
    found = {o: data.repairs(o, "cbp") for o in rows}
    spectral = {o: data.repairs(o, "spectral") for o in rows}
    text = f"CBP gives back {_shares(found)}; spectral regularisation {_shares(spectral)}"
    return _count([found[o] < spectral[o] for o in rows]), text
