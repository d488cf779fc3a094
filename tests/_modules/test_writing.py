"""Writing trained arrays back into a module."""

import mlx.core as mx
import mlx.nn as nn
import pytest

import purestep as ps


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.norm = nn.BatchNorm(4)

    def __call__(self, tokens):
        return self.head(self.norm(self.embedding(tokens)))


TOKENS = mx.array([[1, 2, 3]])


@pytest.fixture
def module():
    with ps.rng.scope(mx.random.key(0)):
        module = Tied()
        mx.eval(module.parameters())
    module.eval()
    return module


def test_tied_arrays_stay_tied_and_the_module_computes_what_apply_does(module):
    apply, params, state = ps.functional(module)
    params, state = (ps.tree.map(lambda x: x + 0.5, tree) for tree in (params, state))
    ps.write_back(module, params, state)
    assert module.head.weight is module.embedding.weight
    assert mx.allclose(module(TOKENS), apply(params, TOKENS, model_state=state)[0])


def test_without_a_model_state_the_module_keeps_its_own(module):
    _, params, _ = ps.functional(module)
    mean = module.norm.running_mean
    ps.write_back(module, params)
    ps.write_back(module, params, {})
    assert module.norm.running_mean is mean


def test_what_does_not_fit_is_refused_and_nothing_is_written(module):
    _, params, state = ps.functional(module)
    before = module.embedding.weight
    with pytest.raises(
        ValueError, match=r"write_back: model_state.norm.running_mean .*\(1,\), \(4,\) in the module"
    ):
        ps.write_back(module, params, ps.tree.map(lambda x: x[:1], state))
    with pytest.raises(ValueError, match="write_back: params .*lacks embedding.weight"):
        ps.write_back(module, {}, state)
    with pytest.raises(TypeError, match="write_back: module .* mlx.nn.Module, got dict"):
        ps.write_back({}, params)
    assert module.embedding.weight is before
