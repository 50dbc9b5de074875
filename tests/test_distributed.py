"""One device, several devices and several processes: the same batches, the same training."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import nnx

import sgjax as sg
from sgjax.attribution import Search
from sgjax.devices import ends_with_others, fetched, initialise, make_mesh, mesh_for
from sgjax.trainer import Trainer

STEPS, INTERVAL, BATCH, INDEXED = 40, 20, 32, 300

# What the same sums in another order may differ by: a loss, and weights that Adam has moved.
LOSS = {"rtol": 1e-4, "atol": 1e-5}
WEIGHTS = {"rtol": 2e-3, "atol": 2e-4}
DISTANCES = {"rtol": 1e-5}

COLLECTIVE = re.compile(
    r"= (\(.*?\)|\S+) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)


def world(mesh) -> tuple[sg.Predictor, sg.SimulationStream]:
    study = sg.Study(
        simulator=sg.simulators.ExponentialDecay(
            prior={"rate": dist.LogNormal(0.0, 0.5)}, ts=[0.25 * n for n in range(1, 9)]
        ),
        observation=sg.observations.Gaussian(sd=0.05, prior={}),
        task=sg.Estimate(),
    )
    predictor = sg.predictors.for_study(study, jax.random.key(1), width=16, depth=1)
    return predictor, sg.SimulationStream(study, jax.random.key(0), BATCH, mesh)


def learn(predictor, stream, **options) -> dict[str, np.ndarray]:
    """The loss curve as this process hears it, and the weights."""
    losses = []
    trained = sg.train(
        predictor, stream, STEPS, interval=INTERVAL,
        callbacks=[lambda report: losses.append(report.loss)], **options,
    )  # fmt: skip
    found = jax.tree.leaves(nnx.state(trained.network, nnx.Param))
    return {"losses": np.array(losses), "weights": np.concatenate([np.ravel(x) for x in found])}


def batch(stream) -> dict[str, np.ndarray]:
    made = fetched(jax.jit(lambda step: stream.batch(step))(5))
    return {"rate": made.theta["rate"], "values": made.observed.values, "latent": made.latent}


def attributed(predictor, stream, folder: Path) -> dict[str, np.ndarray]:
    """The nearest by an index, by the stream, and by the index once more, read from a folder."""
    search = Search(predictor, stream, INDEXED)
    queries = search.held_out(3)
    index = sg.SimulationIndex.build(predictor, stream, INDEXED)
    index.save(folder)
    again = sg.SimulationIndex.load(folder, predictor, stream)
    found = {}
    for name, searched in (("index", index.search), ("stream", search.nearest)):
        nearest = searched(queries, 7)
        found |= {f"{name}_ids": nearest.ids, f"{name}_distances": nearest.distances}
    nearest = again.search(queries, 7)
    found |= {"again_ids": nearest.ids, "again_distances": nearest.distances}
    return {name: np.asarray(values) for name, values in found.items()}


def bytes_each(state) -> int:
    """Of a state on one device."""
    first = jax.local_devices()[0]
    shards = (s for leaf in jax.tree.leaves(state) for s in leaf.addressable_shards)
    return sum(shard.data.nbytes for shard in shards if shard.device == first)


def work(folder: Path) -> None:
    """What one of two processes does; JAX_* variables say which."""
    print(initialise(timeout=60))
    cache = os.environ.get("SGJAX_TEST_CACHE")
    jax.config.update("jax_compilation_cache_dir", cache)
    predictor, stream = world(make_mesh())
    found = {f"batch_{name}": values for name, values in batch(stream).items()}
    found |= learn(predictor, stream)
    found |= {f"sharded_{n}": v for n, v in learn(predictor, stream, sharded=True).items()}
    found |= attributed(predictor, stream, folder / "index")
    np.savez(folder / f"{jax.process_index()}.npz", **found)


def start(command: list[str], variables: dict[str, str]) -> subprocess.Popen:
    """A process with two CPU devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parent), str(here)])
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    return subprocess.Popen(
        [sys.executable, *command], env=env | variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def ended(processes: list[subprocess.Popen]) -> list[str]:
    """What they printed; all must have ended well."""
    try:
        printed = [process.communicate(timeout=540)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, printed, strict=True):
        assert process.returncode == 0, text[-4000:]
    return printed


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.fixture(scope="module")
def alone():
    predictor, stream = world(None)
    return predictor, stream, learn(predictor, stream)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What two processes found, and what they printed."""
    folder, port = tmp_path_factory.mktemp("processes"), free_port()
    call = f"from pathlib import Path; import test_distributed as t; t.work(Path({str(folder)!r}))"
    given = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    processes = [start(["-c", call], given | {"JAX_PROCESS_ID": str(n)}) for n in (0, 1)]
    printed = ended(processes)
    return [dict(np.load(folder / f"{n}.npz")) for n in (0, 1)], printed


@pytest.mark.parametrize("count", [2, 4])
def test_devices_draw_and_learn_what_one_does(alone, count):
    predictor, stream, single = alone
    shared = sg.SimulationStream(stream.study, stream.key, BATCH, make_mesh(jax.devices()[:count]))
    for name, values in batch(shared).items():
        np.testing.assert_array_equal(values, batch(stream)[name])
    together = learn(predictor, shared)
    np.testing.assert_allclose(together["losses"], single["losses"], **LOSS)
    np.testing.assert_allclose(together["weights"], single["weights"], **WEIGHTS)


@pytest.mark.slow
@pytest.mark.distributed
def test_processes_draw_and_learn_what_one_does(alone, both):
    _, stream, single = alone
    found, printed = both
    for name, values in batch(stream).items():
        for process in found:
            np.testing.assert_array_equal(process[f"batch_{name}"], values)
    for kind in ("", "sharded_"):
        # Process 0 alone is heard; both have the weights.
        np.testing.assert_allclose(found[0][f"{kind}losses"], single["losses"], **LOSS)
        assert not found[1][f"{kind}losses"].size
        np.testing.assert_allclose(found[0][f"{kind}weights"], single["weights"], **WEIGHTS)
        np.testing.assert_array_equal(found[0][f"{kind}weights"], found[1][f"{kind}weights"])
    for number, text in enumerate(printed):
        assert f"process {number + 1} of 2, 2 of 4 devices" in text


@pytest.mark.slow
@pytest.mark.distributed
def test_processes_find_what_one_does(alone, both, tmp_path):
    predictor, stream, _ = alone
    single = attributed(predictor, stream, tmp_path / "index")
    for process in both[0]:
        for name in ("index", "stream", "again"):
            np.testing.assert_array_equal(process[f"{name}_ids"], single["index_ids"])
            expected = single["index_distances"]
            np.testing.assert_allclose(process[f"{name}_distances"], expected, **DISTANCES)


def test_an_update_exchanges_gradient_and_metrics_in_one_message(alone):
    predictor, stream, _ = alone
    shared = sg.SimulationStream(stream.study, stream.key, BATCH, make_mesh())
    trainer = Trainer(predictor, shared, sg.Optimisation(), STEPS)
    program = trainer.compiled(INTERVAL, trainer.initial_state())
    exchanged = COLLECTIVE.findall(program.as_text())
    # Of every update the gradient, one score and the share that is valid; of all of them, once,
    # the counts of faults, by mechanism and by quarter.
    assert sorted(exchanged) == [
        ("(f32[1]{0}, f32[4]{0})", "all-reduce"),
        (f"f32[{trainer.params.size + 2}]{{0}}", "all-reduce"),
    ]


@pytest.mark.slow
def test_a_shared_state_is_a_part_on_each_device(alone):
    predictor, stream, single = alone
    shared = sg.SimulationStream(stream.study, stream.key, BATCH, make_mesh(jax.devices()[:4]))
    whole = Trainer(predictor, shared, sg.Optimisation(), STEPS)
    parted = Trainer(predictor, shared, sg.Optimisation(), STEPS, sharded=True)
    # Weights, average and two moments are vectors; beside them lie scales and counters.
    vectors, rest = 4 * 4 * whole.params.size, bytes_each(whole.initial_state())
    rest -= vectors
    state = parted.initial_state()
    assert bytes_each(state) - rest == 4 * 4 * parted.params.size // 4
    program = parted.compiled(INTERVAL, state)
    kinds = {kind for _, kind in COLLECTIVE.findall(program.as_text())}
    assert kinds <= {"all-gather", "reduce-scatter", "all-reduce"}
    state, _ = program(state)
    assert bytes_each(state) - rest == 4 * 4 * parted.params.size // 4
    together = learn(predictor, shared, sharded=True)
    np.testing.assert_allclose(together["losses"], single["losses"], **LOSS)
    np.testing.assert_allclose(together["weights"], single["weights"], **WEIGHTS)
    with pytest.raises(ValueError, match="needs a stream with a `mesh`"):
        Trainer(predictor, stream, sg.Optimisation(), STEPS, sharded=True)


STUDY = """
import numpyro.distributions as dist
import sgjax as sg

study = sg.Study(
    simulator=sg.simulators.ExponentialDecay(
        prior={"rate": dist.LogNormal(0.0, 0.5)}, ts=[1, 2, 3, 4, 5, 6]
    ),
    observation=sg.observations.Gaussian(sd=0.05, prior={}),
    task=sg.Estimate(),
)
"""


def as_srun_starts_them(folder: Path, *options: str) -> list[subprocess.Popen]:
    """Two processes of the command, training in a folder."""
    (folder / "study.py").write_text(STUDY)
    call = [
        "-uc", "import sgjax.cli; sgjax.cli.main()", "train", str(folder / "study.py"),
        "--batch-size", "32", "--width", "16", "--depth", "1", *options,
    ]  # fmt: skip
    given = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    places = [{"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)} for n in (0, 1)]
    return [start(call, given | place) for place in places]


@pytest.mark.slow
@pytest.mark.distributed
def test_the_command_trains_over_processes_as_srun_starts_them(tmp_path):
    run = str(tmp_path / "run")
    printed = ended(as_srun_starts_them(tmp_path, "--folder", run, "--steps", "40"))
    assert "process 1 of 2, 2 of 4 devices" in printed[0] and "Trained on 1,280" in printed[0]
    # JAX and Gloo may say something; sgjax is silent.
    assert "process" not in printed[1] and "Trained" not in printed[1]
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 1
    # One process alone can go on with it.
    call = ["-c", "import sgjax.cli; sgjax.cli.main()", "train", str(tmp_path / "study.py")]
    assert "Trained on 1,280" in ended([start([*call, "--resume", run], {})])[0]


@pytest.mark.slow
@pytest.mark.distributed
def test_who_loses_another_process_says_so_and_ends(tmp_path):
    first, second = as_srun_starts_them(tmp_path, "--folder", str(tmp_path / "run"))
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        for _ in range(2400):  # until both train
            if metrics.exists() or first.poll() is not None:
                break
            time.sleep(0.1)
        second.kill()
        printed, _ = first.communicate(timeout=60)
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
    assert metrics.exists(), printed
    assert first.returncode == 1
    assert "Traceback" not in printed
    assert re.search(r"sgjax: process 1 of 2 ends \(.*Start all of them again", printed)


def test_errors_of_other_processes_are_known_by_their_code(monkeypatch, capsys):
    statuses = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    with pytest.raises(ValueError, match="UNKNOWN"), ends_with_others():
        raise ValueError("UNKNOWN: Gloo all-reduce failed")  # one process: an error like others
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="too small"), ends_with_others():
        raise ValueError("too small")
    assert statuses == []
    with ends_with_others():
        raise ValueError("UNKNOWN: Gloo all-reduce failed")
    assert statuses == [1]
    told = "process 1 of 2 ends (UNKNOWN: Gloo all-reduce failed). Start all"
    assert told in capsys.readouterr().err


def test_the_mesh_is_of_the_devices_that_share_evenly():
    assert mesh_for(7) is None
    assert mesh_for(64, 16).size == 4
    assert mesh_for(96, 16).size == 3


@pytest.fixture
def joined(monkeypatch):
    """Calls of JAX's own way to join, which is not taken; no cluster around."""
    calls = []
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    join = lambda *given, cluster_detection_method, **_: calls.append(
        (*given, cluster_detection_method)
    )
    monkeypatch.setattr(jax.distributed, "initialize", join)
    return calls


def test_nothing_is_joined_on_one_machine(joined, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")  # a batch script without srun: one process
    assert "process 1 of 1, 4 of 4 devices" in initialise()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    initialise()
    assert joined == []


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}, (None, 4, 2, None)),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, (None, 2, 1, None)),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "job-0.sgjax:1234",
                "JAX_NUM_PROCESSES": "2",
                "JOB_COMPLETION_INDEX": "0",
            },
            ("job-0.sgjax:1234", 2, 0, "deactivate"),
        ),
    ],
)
def test_clusters_are_known_by_their_variables(joined, monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    initialise()
    assert joined == [expected]


def test_wrong_clusters_are_told(joined, monkeypatch):
    with pytest.raises(TimeoutError, match=r"127.0.0.1:\d+ did not answer within 0.5 s"):
        initialise(f"127.0.0.1:{free_port()}", 2, 1, timeout=0.5)
    with pytest.raises(ValueError, match="this is process None of None"):
        initialise("127.0.0.1:1234")
    with pytest.raises(ValueError, match="this is process 2 of 2"):
        initialise("127.0.0.1:1234", 2, 2)
    with pytest.raises(ValueError, match="must be host:port"):
        initialise("somewhere", 2, 1)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES must be a whole number"):
        initialise()
    assert joined == []
