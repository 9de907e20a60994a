"""The run list on a local Ray cluster of two nodes: the results of the process pool, whatever dies.

Skipped without Ray: ``pip install 'supple[ray]'``.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from supple.bench import Progress, run_list, run_list_on_ray, with_engine
from supple.bench.cluster import _perform
from supple.bench.jobs import jobs
from supple.cli.main import main
from supple.errors import InputError, MissingExtraError
from supple.store import load

from .tiny import content, die_once, fail, tiny, weigh


def visit(scene: Any) -> Any:
    """Leaves the name of the node that measured."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    (Path(os.environ["SUPPLE_TEST_MARK"]).parent / f"node-{node}").touch()
    return weigh(scene)


def linger(scene: Any) -> Any:
    """On the doomed node, at task 2, says that it is there and waits for the end; elsewhere waits until that is so."""
    import ray

    marks = Path(os.environ["SUPPLE_TEST_MARK"]).parent
    if scene.task == 2 and (marks / "doomed").read_text() == ray.get_runtime_context().get_node_id():
        (marks / "caught").touch()
        time.sleep(600)
    while scene.task == 1 and not (marks / "caught").exists():
        if (marks / "doomed").read_text() == ray.get_runtime_context().get_node_id():
            break
        time.sleep(0.1)
    return weigh(scene)


@pytest.fixture(scope="module")
def marks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers know by SUPPLE_TEST_MARK, which they inherit when the nodes start."""
    return tmp_path_factory.mktemp("marks")


@pytest.fixture(scope="module")
def cluster(marks: Path) -> Iterator[Any]:
    ray: ModuleType = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPPLE_TEST_MARK", str(marks / "mark"))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]))
        nodes = {"num_cpus": 1, "object_store_memory": 10**8}
        # a node that is gone is found out within seconds, not half a minute
        quick = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}
        head = {**nodes, "include_dashboard": False, "_system_config": quick}
        made = Cluster(initialize_head=True, head_node_args=head)
        made.add_node(**nodes)
        patch.setenv("RAY_ADDRESS", made.address)
        yield made
        ray.shutdown()
        made.shutdown()


def test_two_nodes_give_what_the_pool_gives_and_later_calls_compute_only_the_new(
    cluster: Any, marks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a relative folder is the caller's, not the worker's
    names = ("plain", "redo", "shrink_perturb")
    specs = with_engine([tiny(method=m, seed=s, measure_every=1) for m in names for s in (0, 1)], "auto")
    seen: list[Progress] = []
    outcome = run_list_on_ray(specs, "ray", measure=visit, progress=seen.append)
    assert outcome.errors == {}
    assert len(list(marks.glob("node-*"))) == 2
    assert (seen[0].fraction, seen[-1].fraction, seen[-1].done) == (0.0, 1.0, 6)
    pool = run_list(specs, tmp_path / "pool", workers=2, measure=weigh)
    for a, b in zip(outcome.folders, pool.folders, strict=True):
        for name in ("records.jsonl", "summary.json"):
            assert (a / name).read_bytes() == (b / name).read_bytes()
    assert [p for p in Path("ray").iterdir() if p.is_file()] == []
    again = run_list_on_ray([*specs, tiny(seed=2)], "ray", measure=weigh)
    assert again.skipped == 6
    assert load(again.folders[-1]).done


def test_from_the_command_line(cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "run", "digits-permuted", "--tasks", "2", "--methods", "plain,fresh", "--seeds", "1"]
    assert main([*command, "--engine", "ray", "--out", str(tmp_path / "ray"), "--json", "-"]) == 0
    ours = capsys.readouterr().out
    assert main([*command, "--out", str(tmp_path / "pool"), "--json", "-"]) == 0
    assert ours == capsys.readouterr().out


@pytest.fixture(scope="module")
def connected(cluster: Any) -> Any:
    """A connection that is there already: new workers for every call would cost most of the time."""
    pytest.importorskip("ray").init(log_to_driver=False)
    return cluster


def test_a_worker_killed_in_the_middle_is_replaced_and_its_run_resumed(
    connected: Any, marks: Path, tmp_path: Path
) -> None:
    specs = [tiny(tasks=5, seed=s, measure_every=1) for s in (0, 1)]
    outcome = run_list_on_ray(specs, tmp_path / "ray", measure=die_once)
    assert (marks / "mark").read_text() == "died"
    assert outcome.errors == {}
    calm = run_list(specs, tmp_path / "pool", workers=0, measure=weigh)
    assert [content(f) for f in outcome.folders] == [content(f) for f in calm.folders]


def test_a_failing_run_is_reported_and_the_others_go_on(connected: Any, tmp_path: Path) -> None:
    outcome = run_list_on_ray([tiny(seed=s, measure_every=2) for s in (0, 1)], tmp_path, measure=fail)
    assert list(outcome.errors) == ["digits-permuted/plain/seed-1"]
    assert "ZeroDivisionError" in outcome.errors["digits-permuted/plain/seed-1"]
    assert load(outcome.folders[0]).done


def test_a_node_that_dies_with_its_run_costs_no_result(connected: Any, marks: Path, tmp_path: Path) -> None:
    extra = connected.add_node(num_cpus=1, object_store_memory=10**8)
    connected.wait_for_nodes()
    (marks / "doomed").write_text(extra.node_id)
    specs = [tiny(seed=s, measure_every=1) for s in range(3)]

    def lose() -> None:
        while not (marks / "caught").exists():
            time.sleep(0.1)
        extra.kill_raylet(check_alive=False)

    watcher = threading.Thread(target=lose, daemon=True)
    watcher.start()
    outcome = run_list_on_ray(specs, tmp_path / "ray", measure=linger)
    watcher.join()
    assert outcome.errors == {}
    calm = run_list(specs, tmp_path / "pool", workers=0, measure=weigh)
    assert [content(f) for f in outcome.folders] == [content(f) for f in calm.folders]


def test_a_cluster_that_does_not_answer_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray").shutdown()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(InputError, match=r"no Ray cluster answers.*RAY_ADDRESS=127"):
            run_list_on_ray([tiny()], tmp_path)


def test_a_node_without_the_folder_begins_nothing(tmp_path: Path) -> None:
    (job,) = jobs([tiny()], [0])
    why = _perform(job, tmp_path, tmp_path / "elsewhere", {}, weigh, None)
    assert "does not see the folder" in why
    assert "file system that all nodes share" in why
    assert list(tmp_path.iterdir()) == []


def test_without_ray_the_extra_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"supple\[ray\]"):
        run_list_on_ray([tiny()], tmp_path / "runs")
    command = ["bench", "run", "digits-permuted", "--engine", "ray", "--out", str(tmp_path / "runs")]
    assert main(command) == 2
    assert "supple[ray]" in capsys.readouterr().err
    assert main([*command, "--workers", "2"]) == 2
    assert "no --workers" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
