"""The distillation demo: the same student on the same batches, with and without its teacher."""

import json

import mlx.core as mx
import pytest

from purestep.demos import distill as demo
from purestep.demos.shared.reading import read_text
from tests._loop.workload import assert_same
from tests.demos.runs import check_files, check_resumed, options, state, stop


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
    seen, asked = {}, []
    fit = demo.Session.fit

    def watched(self, step, state, source, *, phase, **given):
        seen[phase] = state.params, [source.at(number) for number in range(3)]
        return fit(self, step, state, source, phase=phase, **given)

    loss = demo.ps.losses.distillation_loss

    def noted(student_logits, teacher_logits, targets, **given):
        asked.append(mx.stop_gradient(teacher_logits))
        return loss(student_logits, teacher_logits, targets, **given)

    monkeypatch.setattr(demo.Session, "fit", watched)
    monkeypatch.setattr(demo.ps.losses, "distillation_loss", noted)
    assert demo.run(options(out="run", steps=3)) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"teacher_loss", "student_alone_loss", "student_alone_best_loss", "student_taught_loss"} < set(
        result
    )
    assert result["student_alone_loss"] != result["student_taught_loss"]
    assert_same(seen["alone"], seen["taught"])
    check_files(tmp_path / "run", "teacher", "alone", "taught")

    # The logits of the teacher are those of the model that the first phase has left.
    teacher, _ = demo.seeded(lambda: demo.Transformer(demo.prepared(0).vocabulary, **demo.TEACHER), 0)
    params = state(tmp_path / "run", "teacher")["params"]
    for logits, batch in zip(asked, seen["taught"][1], strict=True):
        assert mx.allclose(logits, teacher(params, batch["inputs"]), atol=1e-5)


def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_interrupted(capsys):
    check_resumed(demo.run, capsys, 11, stop, demo.PHASES)  # in the third phase
