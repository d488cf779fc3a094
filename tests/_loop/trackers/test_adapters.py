"""Adapters against stand-ins for the libraries: what they ask of a server, and its failures."""

import posixpath
import sys
import types

import pytest

import purestep as ps
from tests._loop.trackers.runs import fitted, killed, roll_back
from tests._loop.workload import STEP, At, start

MetricsWarning = ps.callbacks.MetricsWarning


class FakeWandb(types.ModuleType):
    """Weights & Biases with a server that keeps runs by id."""

    def __init__(self):
        super().__init__("wandb")
        self.asked, self.runs, self.failing = [], {}, ""
        self.Table = lambda columns, data: ("table", data)

    def init(self, **options):
        self.asked.append(options)
        if self.failing == "init":
            raise TimeoutError("run initialization has timed out")
        return FakeRun(self, self.runs.setdefault(options["id"], {}))


class FakeRun:
    def __init__(self, library, rows):
        self.library, self.rows = library, rows
        self.starting_step = max(rows, default=-1) + 1

    def log(self, figures, step):
        if self.library.failing == "log":
            raise ConnectionResetError("connection reset by peer")
        assert step >= self.starting_step, "wandb drops such rows, with a message for each"
        row = self.rows.setdefault(step, {})
        assert not row.keys() & figures.keys(), "a figure twice"
        row |= figures

    def finish(self, exit_code):
        self.library.runs["exit"] = exit_code


@pytest.fixture
def library(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def wandb(root, **options):
    pytest.importorskip("PIL")
    return ps.callbacks.wandb(root / "wandb", project="p", **options)


def test_wandb_continues_the_run_of_the_server_on_another_machine(library, tmp_path):
    """The directory of the tracker is not there: only the server knows the last step."""
    killed(wandb(tmp_path / "first"), tmp_path, 11)
    assert library.runs.pop("exit") == 1
    roll_back(tmp_path, 4)
    result = fitted(wandb(tmp_path / "second", options={"tags": ["a"]}), tmp_path, 12)
    assert library.runs.pop("exit") == 0
    (rows,) = library.runs.values()  # one id
    losses = [(step, row["loss"]) for step, row in sorted(rows.items()) if "loss" in row]
    assert losses == list(zip(*result.history.column("loss"), strict=True))
    first, second = library.asked
    assert (first["resume"], second["resume"], second["tags"]) == (None, "allow", ["a"])


@pytest.mark.parametrize(("failing", "said"), [("init", "TimeoutError"), ("log", "ConnectionResetError")])
def test_a_server_that_fails_is_one_warning(library, failing, said, tmp_path):
    library.failing = failing
    with pytest.warns(MetricsWarning, match=f"wandb: .* training goes on: {said}") as caught:
        result = fitted(wandb(tmp_path), tmp_path, 8)
    assert (len(caught), result.reason) == (1, "steps")
    if failing == "log":
        assert library.runs["exit"] == 0


@pytest.mark.parametrize("name", ["id", "config", "resume", "dir"])
def test_options_that_the_tracker_sets_are_refused(library, name, tmp_path):
    with pytest.raises(ValueError, match=f"^wandb: options must not have '{name}', which the tracker sets"):
        wandb(tmp_path, options={name: 1})


class FakeClient:
    """MLflow's client with a server that keeps all in a list."""

    calls: list = []  # noqa: RUF012
    failing = False

    def __init__(self, tracking_uri):
        self.calls.append(("uri", tracking_uri))

    def __getattr__(self, name):
        def call(*given, **named):
            if self.failing and name == "log_batch":
                raise OSError("Max retries exceeded with url")
            self.calls.append((name, given, named))
            info = types.SimpleNamespace(run_id="run-1")
            data = types.SimpleNamespace(tags={"purestep.rows": "6", "purestep.evaluations": "4"})
            run = types.SimpleNamespace(info=info, data=data, experiment_id="7")
            return {"search_runs": [run], "create_experiment": "7"}.get(name, run)

        return call


@pytest.fixture
def client(monkeypatch):
    library, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    calls: list = []
    made = type("Client", (FakeClient,), {"calls": calls})
    library.__dict__["MlflowClient"] = made
    for name in ("Metric", "Param", "RunTag"):
        setattr(entities, name, lambda *given: given)
    monkeypatch.setitem(sys.modules, "mlflow", library)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return made


def test_mlflow_gets_names_that_it_takes_and_goes_on_after_the_tagged_step(client, tmp_path):
    def step(state, batch):
        state, metrics = STEP(state, batch)
        return state, {**metrics, "norm[a]:b/c": metrics["loss"]}

    tracker = ps.callbacks.mlflow("http://localhost:1", experiment="small", config={"a:b": "x" * 9000})
    ps.fit(step, start(), At(), steps=2, callbacks=[tracker], log_every=1)
    assert client.calls[0] == ("uri", "http://localhost:1")
    sent = [named for name, _, named in client.calls[1:] if name == "log_batch"]
    assert sent[0]["params"] == [("a_b", "x" * 6000)]
    assert {metric[0] for metric in sent[1]["metrics"]} >= {"loss", "norm_a__b/c"}
    assert [named["tags"] for named in sent[1:]] == [[("purestep.rows", "1")], [("purestep.rows", "2")]]
    assert client.calls[-1][1:] == (("run-1", "FINISHED"), {})


def test_mlflow_does_not_record_steps_again_that_its_run_has(client, tmp_path):
    fitted(ps.callbacks.mlflow("http://localhost:1", experiment="small"), tmp_path, 4)
    client.calls.clear()
    fitted(ps.callbacks.mlflow("http://localhost:1", experiment="small"), tmp_path, 8)
    sent = [named["tags"][0] for name, _, named in client.calls[1:] if name == "log_batch"]
    assert sent == [("purestep.rows", "8"), ("purestep.evaluations", "8")]
    (filter_string,) = [given[1] for name, given, _ in client.calls[1:] if name == "search_runs"]
    assert filter_string.startswith("tags.`purestep.run` = '")


def test_mlflow_without_a_server_is_one_warning(client, tmp_path):
    client.failing = True
    with pytest.warns(MetricsWarning, match="mlflow: .* goes on: OSError: Max retries") as caught:
        result = fitted(ps.callbacks.mlflow("http://localhost:1", experiment="small"), tmp_path, 8)
    assert (len(caught), result.reason) == (1, "steps")


def test_mlflow_needs_an_experiment(client):
    with pytest.raises(ValueError, match="^mlflow: experiment must be a name, got ''"):
        ps.callbacks.mlflow("run", experiment="")


def test_mlflow_gets_names_that_differ_and_read_like_paths(client, tmp_path):
    hostile = ["../up", "/top", "a//b", "end/", ".", "n[0]", "n(0)", "x" * 300, "x" * 301]

    def step(state, batch):
        state, metrics = STEP(state, batch)
        return state, {**metrics, **dict.fromkeys(hostile, metrics["loss"])}

    config = {name: number for number, name in enumerate(hostile)}
    tracker = ps.callbacks.mlflow("http://localhost:1", experiment="small", config=config)
    ps.fit(step, start(), At(), steps=2, callbacks=[tracker], log_every=1)
    sent = [named for name, _, named in client.calls[1:] if name == "log_batch"]
    first, second = ([metric[0] for metric in each["metrics"]] for each in sent[1:])
    assert set(first) <= set(second)
    for names in (first, [param[0] for param in sent[0]["params"]]):
        assert len({*names}) == len(names)
        assert {"__/up", "top", "a/b", "end", "_", "n_0_"} < {*names}
        assert all(len(name) <= 250 and posixpath.normpath(name) == name for name in names)


@pytest.mark.parametrize("place", ["a?b", "50%/mlflow"])
def test_mlflow_refuses_a_directory_that_sqlite_would_read_otherwise(client, place):
    with pytest.raises(
        ValueError, match=r"^mlflow: place must be a directory without \? and % in its path, got"
    ):
        ps.callbacks.mlflow(place, experiment="small")
