"""One text in hundreds of languages: the Universal Declaration of Human Rights as a sequence of tasks."""

from __future__ import annotations

import os
import zipfile
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from supple.errors import InputError

FEWEST_BYTES = 9_000  # shorter files are parts of the text
PUT = "put nltk's udhr2.zip (one .txt file a language) into text/udhr2 below it, and name the folder with SUPPLE_DATA"


@lru_cache(maxsize=2)
def languages(root: str | None = None) -> dict[str, Tensor]:
    """File name -> its bytes as int64 tokens, of every language with 9 kB or more, in order of names.

    Raises:
        InputError: no folder, or no archive in it, with what to put where.
    """
    folder = root or os.environ.get("SUPPLE_DATA")
    if not folder:
        raise InputError("the languages need a folder of data", do=f"choose a folder, {PUT}")
    found = sorted(Path(folder).glob("text/udhr2/*.zip")) + sorted(Path(folder).glob("udhr2*.zip"))
    if not found:
        raise InputError("there is no archive of languages", where=folder, do=PUT)
    try:
        with zipfile.ZipFile(found[0]) as archive:
            entries = sorted(i.filename for i in archive.infolist() if _wanted(i))
            return {
                Path(name).stem: torch.frombuffer(bytearray(archive.read(name)), dtype=torch.uint8).long()
                for name in entries
            }
    except zipfile.BadZipFile as error:
        raise InputError("the archive of languages is damaged", where=str(found[0]), do=PUT) from error


def _wanted(entry: zipfile.ZipInfo) -> bool:
    return entry.filename.endswith(".txt") and entry.file_size >= FEWEST_BYTES
