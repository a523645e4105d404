"""Training by several processes: each has its own tomograms, all have the same weights, also after a resume."""

from __future__ import annotations

import copy
import itertools
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from faket_aug import SimulationError
from faket_aug.picking import TrainingSettings, fit, tversky_loss
from faket_aug.picking.logs import read_log
from faket_aug.picking.ranks import RankError, Ranks, distributed_job
from tests._helpers import WatchedSimulator, dataset, indices, loader, simulator

#: What torchdata calls is deprecated, see tests/test_training.py.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
STEPS = 7
SETTINGS: dict[str, Any] = {"learning_rate": 0.01, "validate_every": 2, "checkpoint_every": 2}


def _network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # With buffers. A bias before the normalisation would have no gradient but rounding errors.
        first = nn.Conv3d(1, 4, 3, padding=1, bias=False)
        return nn.Sequential(first, nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 4, 1))


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class _Recorded:
    """Collate a batch and keep which items it had."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        self.batches.append(indices(items))
        return torch.utils.data.default_collate(items)


def _value_of_rank(network: nn.Module) -> float:
    """A validation on which the ranks disagree; rank 0's falls, so that its last is the best."""
    assert not network.training
    calls = getattr(network, "calls", 0) + 1
    network.calls = calls  # type: ignore[assignment]
    return float(distributed.get_rank() * 1000 - calls)


def _train(
    folder: Path,
    *,
    steps: int = STEPS,
    count: int = 3,
    seed: int = 0,
    stop: int = 0,
    average: float = 0.0,
    **how: Any,
) -> Any:
    """Train for some steps, to be broken off after `stop` of them; return what this rank saw."""
    network, seen = _network(seed), _Recorded()
    # Three tomograms of five patches on two ranks: three batches on the first, two on the other.
    data = loader(dataset(count=count, live_tomograms=1), batch_size=4, collate_fn=seen, **how)

    def on_step(step: int, loss: float) -> None:
        if step == stop:
            raise KeyboardInterrupt

    try:
        history = fit(
            network,
            data,
            folder,
            settings=TrainingSettings(steps=steps, average=average, **SETTINGS),
            validation=_value_of_rank,
            on_step=on_step,
        )
    except KeyboardInterrupt:
        return None
    return {
        "losses": history.losses,
        "validations": history.validations,
        "state": _state(network),
        "batches": seen.batches,
    }


def _straight(folder: Path, **how: Any) -> Any:
    # Other first weights on each rank: all start with rank 0's.
    return _train(folder, seed=distributed.get_rank(), **how)


def _resumed(folder: Path, **how: Any) -> Any:
    for stop in (3, 5):
        assert _train(folder, stop=stop, **how) is None
    return _train(folder, seed=7, **how)


def _stateful(job: Callable[..., Any], folder: Path) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    # Also with an average of the weights, which each rank computes.
    return job(folder, cls=StatefulDataLoader, average=0.4)


class _FailingFor(WatchedSimulator):
    def __call__(self, specimen: Any, **address: Any) -> Any:
        if address["tomogram"] == 1:
            raise SimulationError(f"{specimen.name}: something is wrong")
        return super().__call__(specimen, **address)


def _failing(folder: Path) -> Any:
    """Tomogram 1, of rank 1, cannot be made."""
    data = loader(dataset(_FailingFor(simulator())), batch_size=5)  # type: ignore[arg-type]
    try:
        fit(_network(), data, folder, settings=TrainingSettings(steps=4))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _damaged(folder: Path) -> Any:
    """Rank 0 cannot read the checkpoint."""
    if distributed.get_rank() == 0:
        folder.mkdir()
        (folder / "checkpoint.pt").write_bytes(b"nothing")
    distributed.barrier()
    try:
        fit(_network(), loader(dataset(), batch_size=5), folder, settings=TrainingSettings(steps=4))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


JOBS: dict[str, Callable[[Path], Any]] = {
    "straight": _straight,
    "resumed": _resumed,
    "straight_stateful": partial(_stateful, _straight),
    "resumed_stateful": partial(_stateful, _resumed),
    "fewer": partial(_train, count=1, steps=3),
    "failing": _failing,
    "damaged": _damaged,
}


def _rank(rank: int, world: int, folder: Path, jobs: tuple[str, ...]) -> None:
    """Do all jobs as one of the ranks; what each rank found is put into a file."""
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    for name in jobs:
        torch.save(JOBS[name](folder / name), folder / f"{name}_{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def _start(folder: Path, world: int, jobs: tuple[str, ...]) -> Callable[[str], list[Any]]:
    multiprocessing.spawn(_rank, (world, folder, jobs), nprocs=world)
    return lambda name: [torch.load(folder / f"{name}_{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("job")


@pytest.fixture(scope="module")
def found(folder: Path) -> Callable[[str], list[Any]]:
    """What two ranks found in each of the jobs."""
    return _start(folder, 2, tuple(JOBS))


def test_ranks_share_out_each_epoch(found: Callable[[str], list[Any]]) -> None:
    """Each rank has its own tomograms; together they read what one process would, each item once an epoch."""
    first, second = (rank["batches"] for rank in found("straight"))
    # Three batches of the first rank's ten items, two of the other's five: epochs of three steps.
    assert [len(batch) for batch in first] == [4, 4, 2, 4, 4, 2, 4]
    assert [len(batch) for batch in second] == [4, 1, 4, 1, 4]
    for epoch in (0, 1):
        parts = first[3 * epoch : 3 * epoch + 3], second[2 * epoch : 2 * epoch + 2]
        own = [list(itertools.chain.from_iterable(part)) for part in parts]
        assert {index // 5 for index in own[0]} == {0, 2}
        assert {index // 5 for index in own[1]} == {1}
        assert sorted(own[0] + own[1]) == list(range(15))


def test_ranks_agree(found: Callable[[str], list[Any]], folder: Path) -> None:
    """All ranks have the same weights, losses and validations; rank 0's validation counts, and rank 0 writes."""
    first, second = found("straight")
    assert _same(first["state"], second["state"])
    assert first["losses"] == second["losses"]
    assert first["validations"] == second["validations"] == [(2, -1.0), (4, -2.0), (6, -3.0), (7, -4.0)]
    assert sorted(path.name for path in (folder / "straight").iterdir()) == [
        "best.pt",
        "checkpoint.previous.pt",
        "checkpoint.pt",
        "log.csv",
    ]
    assert read_log(folder / "straight" / "log.csv")[7]["loss"] == pytest.approx(first["losses"][6], rel=1e-8)
    best = torch.load(folder / "straight" / "best.pt", weights_only=True)
    assert _same(best["model"], first["state"])


def test_steps_are_those_of_averaged_gradients(found: Callable[[str], list[Any]]) -> None:
    """The weights are those of one process that averages the gradients of the ranks' batches, written out."""
    ranks = found("straight")
    network = _network()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    items: dict[int, list[dict[str, Any]]] = {}
    data = dataset(live_tomograms=1)
    for epoch in range(3):
        data.set_epoch(epoch)
        items[epoch] = sorted(data, key=lambda item: item["index"])
    # Batches of each rank by step: the second one's epochs are a step shorter.
    batches = [ranks[0]["batches"], [*ranks[1]["batches"]]]
    for step in (2, 5):
        batches[1].insert(step, [])
    for step in range(STEPS):
        copies, losses = [], []
        for own in batches:
            if own[step]:
                batch = torch.utils.data.default_collate([items[step // 3][index] for index in own[step]])
                copies.append(copy.deepcopy(network))
                losses.append(tversky_loss(copies[-1](batch["image"]), batch["label"]))
                losses[-1].backward()
        for weight, *others in zip(network.parameters(), *(one.parameters() for one in copies), strict=True):
            weight.grad = torch.stack([other.grad for other in others]).mean(dim=0)
        optimizer.step()
        # The statistics of the normalisation are rank 0's.
        for buffer, other in zip(network.buffers(), copies[0].buffers(), strict=True):
            buffer.copy_(other)
        assert ranks[0]["losses"][step] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(ranks[0]["state"][name], value, msg=name)


@pytest.mark.parametrize("kind", ["", "_stateful"])
def test_resume_is_exact(found: Callable[[str], list[Any]], kind: str) -> None:
    """Broken off twice and gone on with, ranks that stand at different places end with the same weights."""
    if kind:
        pytest.importorskip("torchdata.stateful_dataloader")
    first = found(f"straight{kind}")[0]["state"]
    for straight, resumed in zip(found(f"straight{kind}"), found(f"resumed{kind}"), strict=True):
        assert resumed["losses"] == straight["losses"]
        assert _same(resumed["state"], straight["state"])
        assert _same(straight["state"], first)
        # The last part began after step 4, with the second epoch's second step.
        assert resumed["batches"] == straight["batches"][-len(resumed["batches"]) :]


def test_more_ranks_than_tomograms(found: Callable[[str], list[Any]]) -> None:
    """A rank without any tomogram goes along with the others."""
    first, second = found("fewer")
    assert second["batches"] == []
    assert len(first["batches"]) == 3
    assert _same(first["state"], second["state"])


def test_error_of_a_rank_ends_all(found: Callable[[str], list[Any]]) -> None:
    """The rank that fails says why, the others which one it was, and why."""
    first, second = (rank["error"] for rank in found("failing"))
    assert first == f"RankError: rank 1 failed while it made its batches: {second}"
    assert second.startswith("SimulationError: specimen")
    assert second.endswith("something is wrong")


def test_damaged_checkpoint_ends_all(found: Callable[[str], list[Any]]) -> None:
    first, second = (rank["error"] for rank in found("damaged"))
    assert "checkpoint.pt: expected a checkpoint, got another or a damaged file" in first
    assert second == f"RankError: rank 0 failed: {first}"


def test_other_number_of_ranks_is_refused(found: Callable[[str], list[Any]], folder: Path) -> None:
    """What two ranks began, one does not go on with: items would come twice or never."""
    found("straight")
    data = loader(dataset(live_tomograms=1), batch_size=4)
    with pytest.raises(ValueError, match="expected a checkpoint of a run of 1 processes, got one of 2; start as many"):
        fit(_network(), data, folder / "straight", settings=TrainingSettings(steps=9, **SETTINGS))


@pytest.mark.slow
def test_resume_of_three_ranks_is_exact(tmp_path: Path) -> None:
    """Three numbers have several sums: the order of adding them stays the same after a resume."""
    found = _start(tmp_path, 3, ("straight", "resumed"))
    for straight, resumed in zip(found("straight"), found("resumed"), strict=True):
        assert resumed["losses"] == straight["losses"]
        assert _same(resumed["state"], straight["state"])


def test_processes_that_have_not_joined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Under torchrun each process would train alone on its share of the tomograms; that is refused."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"the 2 processes of a distributed job to have joined.*distributed_job"):
        fit(_network(), loader(dataset(), batch_size=5), tmp_path, settings=TrainingSettings(steps=1))


def _job_of_one() -> dict[str, str]:
    """The environment that torchrun gives to a job of one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_threads_of_a_job_end_with_it() -> None:
    """A thread of gloo that outlives the job can abort the process when the interpreter ends."""
    program = """
        import torch
        from pathlib import Path
        from faket_aug.picking.ranks import distributed_job

        def of_gloo():
            return [one for one in Path("/proc/self/task").glob("*/comm") if "gloo" in one.read_text()]

        with distributed_job("cpu"):
            torch.optim.Adam([torch.zeros(1, requires_grad=True)])
            assert of_gloo()
        assert not of_gloo()
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | _job_of_one()
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=environment, timeout=120, check=True)


def test_joining_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchrun nothing is joined; with it the processes are, for the length of the `with`."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with distributed_job("cpu") as rank:
        assert (rank, distributed.is_initialized()) == (0, False)
    for name, value in _job_of_one().items():
        monkeypatch.setenv(name, value)
    with distributed_job("cpu") as rank:
        assert (rank, distributed.is_initialized(), distributed.get_backend()) == (0, True, "gloo")
        # A job within the job is the same one.
        with distributed_job("cpu"):
            pass
        assert distributed.is_initialized()
    assert not distributed.is_initialized()


def test_alone() -> None:
    """One process gives, gathers and tells to itself; its errors are its own."""
    ranks = Ranks(torch.device("cpu"))
    assert ranks.tell(lambda: 3) == 3
    assert ranks.gather("x") == ["x"]
    assert list(ranks.in_step(iter("ab"))) == [("a", 1), ("b", 1)]

    def broken() -> Any:
        yield 1
        raise SimulationError("mine")

    batches = ranks.in_step(broken())
    assert next(batches) == (1, 1)
    with pytest.raises(SimulationError, match="mine"):
        next(batches)
    assert issubclass(RankError, RuntimeError)
