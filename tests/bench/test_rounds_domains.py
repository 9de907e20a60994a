"""Rounds over the domains of a folder: what is read and refused, pieces in their order, records of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.bench.test_rounds import SHORT, TINY

from supple.bench.rounds import folder_of, run_rounds
from supple.bench.rounds.arms import ARMS, Length
from supple.bench.rounds.course import Course, Identification, fixed_probe
from supple.bench.rounds.sources import Folder
from supple.bench.rounds.words import render
from supple.cli.main import main
from supple.errors import InputError
from supple.streams.data import texts as room
from supple.streams.data.texts import texts


def test_a_domain_is_a_file_or_a_folder_with_a_training_file(domain_folder: Path) -> None:
    found = texts(domain_folder)
    assert list(found) == ["code", "maths", "plays"]
    assert bytes(found["plays"].tolist()) == b"abcde" * 4000
    assert bytes(found["code"].tolist()) == b"fghij" * 4000
    row = b"k" * 30 + b"\n" + b"l" * 30
    assert bytes(found["maths"].tolist()) == b"\n\n".join([row] * 330)


def test_what_is_no_text_is_refused_by_name(domain_folder: Path, tmp_path: Path) -> None:
    def said(message: str) -> None:
        with pytest.raises(InputError, match=message):
            texts(domain_folder)

    for name, content, message in (
        ("latin.txt", b"caf\xe9 " * 3000, r"no UTF-8 text.*byte 3.*latin\.txt"),
        ("zeros.txt", bytes(10_000), "no text.*zero byte"),
        ("short.txt", b"a few words", "too short.*11 bytes"),
        ("empty.txt", b"", "too short"),
        ("rows.jsonl", b'{"text": "a"}\n[1]\n', "no JSON object.*row 2"),
        ("rows.jsonl", b"\n{\n", "no JSON object.*row 1"),
        ("rows.jsonl", b'{"label": "a"}\n', "none of question, answer, text"),
        ("code.txt", b"abc " * 3000, "two files give the same domain.*code"),
    ):
        (domain_folder / name).write_bytes(content)
        said(message)
        (domain_folder / name).unlink()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_text("abc " * 3000)
    with pytest.raises(InputError, match=r"two or more.*found: 1"):
        texts(tmp_path / "one")
    with pytest.raises(InputError, match="no such folder"):
        texts(tmp_path / "none")
    with pytest.raises(InputError, match="a file"):
        texts(tmp_path / "one" / "a.txt")


def test_a_long_text_is_cut_between_letters(domain_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MOST_BYTES", 40_001)
    (domain_folder / "long.txt").write_text("é" * 25_000)
    assert bytes(texts(domain_folder)["long"].tolist()) == "é".encode() * 20_000


def test_pieces_come_in_order_and_none_comes_twice(domain_folder: Path) -> None:
    source = Folder(domain_folder)
    found = source.rounds(0, 6)
    names = [n for n, _ in found]
    assert sorted(n.split()[0] for n in names[:3]) == ["code", "maths", "plays"]
    assert [n.replace(" 1/2", " 2/2") for n in names[:3]] == names[3:]
    whole = dict(source.all())
    for (name, first), (_, second) in zip(found[:3], found[3:], strict=True):
        text = whole[name.split()[0]]
        half = len(text) // 2
        assert torch.equal(first, text[:half])
        assert torch.equal(second, text[half : 2 * half])
    assert [n for n, _ in source.rounds(0, 3)] == [
        n.split()[0] for n in names[:3]
    ]  # whole where no cut is needed
    assert {tuple(n for n, _ in source.rounds(s, 3)) for s in range(9)} > {
        tuple(n.split()[0] for n in names[:3])
    }
    with pytest.raises(InputError, match=r"too short to be cut.*3 pieces"):
        source.rounds(0, 7)


def test_the_course_and_the_probe_are_of_the_domains(domain_folder: Path) -> None:
    source = Folder(domain_folder)
    course = Course(0, Length(1, 3, 5), TINY, source)
    letters = {"code": "fghij", "plays": "abcde", "maths": "kl\n"}
    for turn, name in enumerate(course.names):
        assert set(bytes(course.batch(turn, "a")[0].flatten().tolist()).decode()) <= set(letters[name])
    seen = {chr(int(row[0])) for row in fixed_probe(TINY, source)[0]}
    assert seen & set("abcde")
    assert seen & set("fghij")
    told = Identification(0, Length(1, 4, 5), TINY, source)
    assert told.classes == 3
    assert all(sorted(names.split(",")) == ["code", "maths", "plays"] for names in told.names)
    assert len(set(told.names)) > 1


def test_records_know_their_texts(
    domain_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import supple.bench.rounds.run as run

    monkeypatch.setattr(run, "SMALL", TINY)
    monkeypatch.setattr(run, "ARMS", ARMS[:2])
    monkeypatch.setattr(run, "LENGTHS", {"tiny": SHORT})
    monkeypatch.delenv("SUPPLE_DATA", raising=False)
    for kind in ("lm-rounds", "lm-classification"):
        command = [
            "bench",
            "run",
            kind,
            "--preset",
            "tiny",
            "--data",
            str(domain_folder),
            "--out",
            str(tmp_path),
        ]
        assert main(command) == 0
        assert "Texts: the domains of domains." in capsys.readouterr().out
        folder = folder_of(tmp_path, "tiny", data=domain_folder, kind=kind)
        assert folder.name == "tiny-domains"
        records = run_rounds(folder, "tiny", data=domain_folder, kind=kind)
        assert {r["data"]["name"] for r in records} == {"domains"}
        assert len(records) == 2
        assert json.loads(json.dumps(records)) == records
    assert "accuracy" in render(records)
    (domain_folder / "plays.txt").write_text("edcba" * 4000)
    with pytest.raises(InputError, match="records of other texts"):
        run_rounds(folder, "tiny", data=domain_folder, kind="lm-classification")
    assert main([*command[:-3], str(domain_folder / "plays.txt")]) == 2
    assert "the texts need a folder" in capsys.readouterr().err
