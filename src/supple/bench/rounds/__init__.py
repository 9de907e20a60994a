"""Does a language model grow stiff over rounds of fine-tuning? A small GPT on one text after another, or
between texts to be told apart, with remedies, beside fresh models and models restarted from round 0.
"""

from supple.bench.rounds.read import answer
from supple.bench.rounds.run import ARMS, KINDS, LENGTHS, RECORDS, folder_of, run_rounds

__all__ = ["ARMS", "KINDS", "LENGTHS", "RECORDS", "answer", "folder_of", "run_rounds"]
