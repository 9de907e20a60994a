"""The page of the fine-tuning rounds of a small language model."""

from __future__ import annotations

from page import NOTICE, ROOT, origin, read

HEAD = (
    "# lm-rounds",
    "",
    "Does a language model grow stiff over rounds of fine-tuning? A byte-level GPT (two layers, width 64) learns one",
    "language of the Universal Declaration of Human Rights after another, equally many steps each; every arm sees",
    "the same batches. `fresh` is a new model each round, `restart` the model of round 0 each round. Losses are nats a",
    "byte on each batch before its update, the end loss is that of the last 20 steps of a round. **change**: of the",
    "gap to fresh models from the first to the last third of the rounds, paired over seeds; above 0 the head start",
    "shrinks. **rounds at fresh's loss**: those in which the arm reaches the fresh model's end loss at all.",
    "",
    "The model is tiny and the rounds are short: what is absent here may appear at scale, and the other way round.",
    "",
)


def rounds() -> dict[str, str]:
    """The page, from its committed records."""
    from supple.bench.rounds.words import render

    path = ROOT / "results/lm-rounds/records.json"
    if not path.exists():
        return {}
    data = read(path)
    lines = [NOTICE, "", *HEAD, f"## Preset {data['preset']}", "", render(data["records"]), ""]
    return {"results/lm-rounds.md": "\n".join([*lines, *origin(data)])}
