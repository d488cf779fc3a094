"""The distillation demo: the same student on the same batches, with and without its teacher."""

import json

import mlx.core as mx
import pytest

from purestep.demos import distill as demo
from purestep.demos.shared.reading import read_text
from tests.demos.runs import check_files, options


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Models and a text small enough to run quickly without compilation."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "read_text", lambda data: read_text(data)[:6000])
    for name, value in {"CONTEXT": 8, "BATCH_SIZE": 4, "TEACHER_STEPS": 4, "LITTLE": 500}.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(demo, "TEACHER", {"width": 12, "layers": 1, "heads": 2, "buckets": 32})
    monkeypatch.setattr(demo, "STUDENT", {"width": 8, "layers": 1, "heads": 2, "buckets": 32})


def test_both_students_see_the_same_and_differ_by_the_teacher_alone(tmp_path, monkeypatch, capsys):
    seen = {}
    train = demo.Session.train

    def watched(self, phase, state, step, batch_of, **options):
        def noted(state):
            batch = batch_of(state)
            seen.setdefault(phase, []).append({name: array.tolist() for name, array in batch.items()})
            return batch

        seen[f"{phase} begins"] = state.params
        return train(self, phase, state, step, noted, **options)

    monkeypatch.setattr(demo.Session, "train", watched)
    assert demo.run(options(out="run", steps=3)) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"teacher_loss", "student_alone_loss", "student_alone_best_loss", "student_taught_loss"} < set(
        result
    )
    assert result["student_alone_loss"] != result["student_taught_loss"]
    assert len(seen["alone"]) == len(seen["taught"]) == 3
    for alone, taught in zip(seen["alone"], seen["taught"], strict=True):
        assert alone.keys() == {"inputs", "targets"}
        assert taught.keys() == {"inputs", "targets", "teacher_logits"}
        assert {name: taught[name] for name in alone} == alone
    weights = [seen[f"{phase} begins"]["embedding"]["weight"] for phase in ("alone", "taught")]
    assert mx.array_equal(*weights)
    check_files(tmp_path / "run", "teacher", "alone", "taught")
