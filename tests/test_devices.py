"""What may be asked for as a device, what is said where it is not there, and one worker for each GPU."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import regframe as rf
from regframe import devices, ops
from regframe.batch.pools import one_gpu_each
from regframe.cli import main
from regframe.cli.inspect import _gpus


@pytest.fixture
def with_gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A torch for CUDA that finds so many GPUs."""

    def set_up(count: int) -> None:
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"model {i}")
        monkeypatch.setattr(ops, "has_kernel", lambda device_type: True)
        monkeypatch.delenv(devices.VISIBLE, raising=False)

    return set_up


def one_sentence(error: Any) -> None:
    assert re.fullmatch(r"wanted [^\n]*(got|found) [^\n]*; [^\n]*[^.]", str(error.value))


@pytest.mark.parametrize(
    ("name", "said"),
    [("cuda", "a torch .* without CUDA"), ("cuda:1", "without CUDA"), ("gpu", "got 'gpu'"), ("cuda:x", "name one")],
)
def test_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    image = rf.Image(torch.zeros((1, 16, 16)), rf.Grid((16, 16)))
    for ask in (
        lambda: rf.register(image, image, device=name),
        lambda: rf.SlideOptions(device=name),
        lambda: devices.chosen(name, 10**9),
        lambda: rf.align_stack([image, image], config=rf.Config(device=name)),
    ):
        with pytest.raises(ValueError, match=said) as error:
            ask()
        one_sentence(error)


@pytest.mark.parametrize(
    "command", [["register", "a.png", "b.png", "-o", "out"], ["stack", "a.png", "b.png", "-o", "out"]]
)
def test_commands_refuse_it_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, command: list[str]) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    run = CliRunner().invoke(main, [*command, "--device", "cuda"])
    assert run.exit_code == 2
    assert "wanted device 'cuda', found a torch" in run.output


def test_where_there_is_no_gpu_or_another_one(with_gpus: Any) -> None:
    with_gpus(0)
    with pytest.raises(ValueError, match="found no GPU that this process may use; see what nvidia-smi says") as error:
        devices.check("cuda")
    one_sentence(error)
    with_gpus(2)
    devices.check("cuda:1")
    with pytest.raises(ValueError, match="found cuda:0, cuda:1; name one of these") as error:
        devices.check("cuda:2")
    one_sentence(error)


def test_auto_takes_a_gpu_only_where_it_pays(with_gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(0)
    assert devices.chosen("auto", 10**9) == torch.device("cpu")
    with_gpus(1)
    assert devices.chosen("auto", devices.WORTH) == torch.device("cuda:0")
    assert devices.chosen("auto", devices.WORTH - 1) == torch.device("cpu")
    assert devices.chosen("cuda", 1) == torch.device("cuda:0")
    monkeypatch.setattr(ops, "has_kernel", lambda device_type: False)
    assert devices.chosen("auto", 10**9) == torch.device("cpu")


def test_a_fit_says_where_it_ran() -> None:
    image = torch.rand((1, 24, 24), generator=torch.Generator().manual_seed(0))
    side = rf.Image(image, rf.Grid((24, 24)))
    result = rf.register(side, side, device="auto", transform="rigid", init="identity")
    assert result.metrics["device"] == "cpu"
    assert result.config.device == "auto"


class Workers:
    """The part of a cluster on this machine that says how its workers are started."""

    def __init__(self) -> None:
        self.worker_spec: dict[int, Any] = {}
        self.count = 0

    def new_worker_spec(self) -> dict[int, Any]:
        self.count += 1
        return {self.count: {"cls": None, "options": {"nthreads": 1}}}

    def scale(self, n: int) -> None:
        while len(self.worker_spec) < n:
            self.worker_spec.update(self.new_worker_spec())


def test_each_worker_sees_one_gpu(with_gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(3)
    assert devices.visible(2) == ["0", "1"]
    monkeypatch.setenv(devices.VISIBLE, "5,2, 7")
    cluster = Workers()
    one_gpu_each(cluster, devices.visible(3))
    cluster.scale(3)

    def seen() -> list[str]:
        return [one["options"]["env"][devices.VISIBLE] for one in cluster.worker_spec.values()]

    assert seen() == ["5", "2", "7"]
    del cluster.worker_spec[2]  # lost: the one in its place gets its GPU
    cluster.scale(3)
    assert seen() == ["5", "7", "2"]
    with pytest.raises(ValueError, match="wanted 4 GPUs, found 3") as error:
        devices.visible(4)
    one_sentence(error)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gpus", "2"], "wanted 2 GPUs, found none"),
        (["--gpus", "all"], "wanted 1 GPUs?, found none"),
        (["--gpus", "some"], "a number from 1, or all, got 'some'"),
        (["--gpus", "1", "--workers", "2"], "wanted --gpus alone"),
    ],
)
def test_a_batch_asks_for_gpus_that_are_there(with_gpus: Any, tmp_path: Any, options: list[str], said: str) -> None:
    with_gpus(0)
    manifest = tmp_path / "m.csv"
    manifest.write_text("id,fixed,moving\na,x.png,y.png\n")
    run = CliRunner().invoke(main, ["batch", str(manifest), "-o", str(tmp_path / "out"), "--dry-run", *options])
    assert run.exit_code == 2
    assert re.search(said, run.output)


def test_a_batch_on_gpus_says_so_to_its_jobs(with_gpus: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(2)
    seen: dict[str, Any] = {}
    monkeypatch.setattr(sys.modules["regframe.cli.batch"], "_dry_run", lambda jobs, *rest: seen.update(jobs=jobs))
    manifest = tmp_path / "m.csv"
    manifest.write_text("id,fixed,moving,device\na,x.png,y.png,\nb,x.png,y.png,cpu\n")
    run = CliRunner().invoke(main, ["batch", str(manifest), "-o", str(tmp_path / "out"), "--dry-run", "--gpus", "all"])
    assert run.exit_code == 0, run.output
    assert [job.device for job in seen["jobs"]] == ["cuda", "cpu"]


def test_the_doctor_names_gpus() -> None:
    there = {"torch": "13.0", "available": True, "devices": ["H200"], "ready": True}
    assert _gpus(there) == "cuda:0 H200 (torch built for 13.0), with kernels; --device cuda or auto uses it"
    assert "build it anew" in _gpus(there | {"ready": False})
    assert _gpus(there | {"torch": None, "devices": []}) == "none (torch built for the CPU only): fits run on the CPU"
