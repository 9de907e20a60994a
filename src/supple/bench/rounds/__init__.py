"""Does a language model grow stiff over rounds of fine-tuning? A small GPT on one text after another, or
between texts to be told apart, with remedies, beside fresh models and models restarted from round 0.
"""

from supple.bench.rounds.courses import courses
from supple.bench.rounds.read import figures, records_of
from supple.bench.rounds.run import ARMS, KINDS, LENGTHS, RECORDS, folder_of, run_rounds
from supple.bench.rounds.words import parts

__all__ = [
    "ARMS", "KINDS", "LENGTHS", "RECORDS", "courses", "figures", "folder_of", "parts", "records_of", "run_rounds",
]  # fmt: skip
