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


DOMAINS = (
    "Texts of another kind: plays, an encyclopaedia, speeches, Python, Spanish prose, shell pages, medical and",
    "arithmetic questions with their answers, abstracts, passages; 16 rounds over 10 domains, so that six of them come",
    "again with their second half.",
    "",
)
CLASSIFICATION = (
    "# lm-classification",
    "",
    "The rounds of [lm-rounds](lm-rounds.md) as classification: which of ten text domains is a window of 64 bytes of?",
    "Every round numbers the domains anew; the class is read off the logits of the first ten tokens, no head is added.",
    "Losses are nats a window; guessing gives 2.303.",
    "",
)


def rounds() -> dict[str, str]:
    """The pages of language and of domain rounds, from their committed records."""
    lines = [NOTICE, "", *HEAD, *_part("lm-rounds/records.json", "languages", ()),
             *_part("lm-rounds/domains.json", "text domains", DOMAINS)]  # fmt: skip
    pages = {"results/lm-rounds.md": "\n".join(lines)}
    if told := _part("lm-classification/domains.json", "text domains", ()):
        pages["results/lm-classification.md"] = "\n".join([NOTICE, "", *CLASSIFICATION, *told])
    return pages


def _part(file: str, of: str, words: tuple[str, ...]) -> list[str]:
    """A file of records as a section; how many of the runs are there, where some are not."""
    from supple.bench.rounds import LENGTHS
    from supple.bench.rounds.words import render

    path = ROOT / "results" / file
    if not path.exists():
        return []
    data = read(path)
    lines = [f"## Preset {data['preset']}, {of}", "", *words]
    wanted = LENGTHS[data["preset"]].seeds * len(data.get("arms", ()))
    if len(data["records"]) < wanted:
        lines += [
            f"{len(data['records'])} of {wanted} runs are made; an arm is held against `fresh` on its own seeds.",
            "",
        ]
    return [*lines, render(data["records"]), "", *origin(data)]
