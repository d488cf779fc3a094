"""On-policy batches: completions sampled from the current parameters, with rewards and advantages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks
from purestep._core.rng import fold_in
from purestep._core.types import Batch
from purestep._data.sampling.completions import check_prompts
from purestep._data.sampling.options import Decode, Drawing, InitCache, Model
from purestep._data.sampling.rewards import AdvantageFn, RewardFn, checked_advantages, checked_rewards
from purestep._data.sampling.sampler import Sampler
from purestep._losses.policy.advantages import group_advantages
from purestep._steps.state import TrainState

# A step draws from `split(state.rng)`. Folding in 0 could repeat keys of later steps; this number does not.
_ROLLOUT = 0x526F6C6C


class _Task(NamedTuple):
    """Prompts, their scoring and their division into batches; `rollout` documents the fields."""

    prompts: Sequence[Sequence[int]]
    reward_fn: RewardFn
    advantage_fn: AdvantageFn
    columns: Mapping[str, Sequence[Any]]
    group_size: int
    batch_size: int
    seed: int

    def checked(self, caller: str) -> "_Task":
        """Return the task; raise an error if an option is out of its range."""
        checks.function(caller, "reward_fn", self.reward_fn)
        checks.function(caller, "advantage_fn", self.advantage_fn)
        group_size = checks.integer(caller, "group_size", self.group_size, least=1)
        seed = checks.integer(caller, "seed", self.seed, least=0)
        if seed >= 2**32:
            raise checks.error(caller, f"seed must be less than 2**32, got {seed}")
        batch_size = checks.integer(caller, "batch_size", self.batch_size, least=1)
        if batch_size % group_size:
            raise checks.error(
                caller,
                f"batch_size must be divisible by group_size={group_size}, so that groups are of equal size, "
                f"got {batch_size}",
            )
        count = len(self.prompts)
        if batch_size // group_size > count:
            raise checks.error(
                caller,
                f"batch_size must be at most {group_size * count}, {group_size} for each prompt, "
                f"got {batch_size}",
            )
        for name, column in self.columns.items():
            if len(column) != count:
                raise checks.error(
                    caller,
                    f"columns[{name!r}] must have one value for each prompt, {count}, got {len(column)}",
                )
        return self._replace(group_size=group_size, batch_size=batch_size, seed=seed)


class Rollout:
    """Batches as a pure function of a training state. Build it with `rollout`.

    Attributes:
        on_policy: true: `at` takes the state, not the step.
    """

    on_policy = True

    def __init__(self, sample: Sampler, task: _Task, *, stateful: bool):
        self._sample, self._task, self._stateful = sample, task, stateful
        lengths = [len(prompt) for prompt in task.prompts]
        self._shortest, self._longest = min(lengths), max(lengths)

    def at(self, state: TrainState) -> Batch:
        """Sample completions from a state and score them; equal states give equal bits.

        This waits for the device and calls the reward function, so call it between steps, not inside one.

        Returns:
            A batch of arrays with `batch_size` rows and the same shapes at every step; the completions of
            one prompt are neighbours. `tokens` int32 [n, length]; `completion_mask` and `behavior_logps`
            float32 [n, length - 1], aligned with `tokens[:, 1:]`; `advantages`, `rewards` and `truncated`
            float32 [n]. See `Completions`.

        Raises:
            ValueError, TypeError: if the reward function does not return one finite number for each
                completion, the advantage function does not return an array [n], or the log-probabilities of
                the model are not finite.
        """
        caller, task = "rollout", self._task
        key = fold_in(fold_in(state.rng, _ROLLOUT), task.seed)
        pick, draw = mx.random.split(key)
        rows = self._rows(pick)
        prompts = [list(task.prompts[number]) for number in rows]
        params = (state.params, state.model_state) if self._stateful else state.params
        drawn = self._sample(params, prompts, draw, shortest=self._shortest, longest=self._longest)
        assert drawn.logps is not None  # rollout requires a temperature above 0
        if not mx.isfinite(drawn.logps).all().item():
            raise checks.error(caller, "the log-probabilities of the model are not finite")
        columns = {name: [column[number] for number in rows] for name, column in task.columns.items()}
        rewards = task.reward_fn(prompts, drawn.lists(), **columns)
        rewards = checked_rewards(caller, rewards, len(rows))
        advantages = checked_advantages(caller, task.advantage_fn(rewards, task.group_size), rewards)
        return {
            "tokens": drawn.tokens,
            "completion_mask": drawn.completion_mask,
            "behavior_logps": drawn.logps,
            "advantages": advantages,
            "rewards": rewards,
            "truncated": drawn.truncated,
        }

    def _rows(self, key: mx.array) -> list[int]:
        """Return the index of the prompt of each row."""
        groups, count = self._task.batch_size // self._task.group_size, len(self._task.prompts)
        chosen: Any = range(count)
        if groups < count:
            chosen = mx.random.permutation(count, key=key)[:groups].tolist()
        return [number for number in chosen for _ in range(self._task.group_size)]


def rollout(
    apply_fn: Callable[..., mx.array],
    prompts: Sequence[Sequence[int]],
    reward_fn: RewardFn,
    *,
    max_tokens: int,
    group_size: int = 8,
    batch_size: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    renormalize: bool = False,
    stop_tokens: Sequence[int] = (),
    pad_token: int = 0,
    advantage_fn: AdvantageFn = group_advantages,
    columns: Mapping[str, Sequence[Any]] | None = None,
    seed: int = 0,
    stateful: bool = False,
    init_cache: InitCache | None = None,
    decode: Decode | None = None,
    compile: bool = True,
) -> Rollout:
    """Build a source of on-policy batches: `source.at(state)` samples from the state and scores the samples.

    Each batch has `batch_size / group_size` prompts with `group_size` completions each. The reward function
    scores the completions, and advantages are computed within each group. A group with equal rewards has
    advantages of 0. A batch is a function of the state alone, so a resumed run sees the same batches as an
    uninterrupted one:

        batch = source.at(state)
        state, metrics = step(state, batch)

    Several steps may use one batch; `behavior_logps` remain those of the parameters that sampled it. The
    loss must score the tokens at the same `temperature`, so that importance ratios start at 1.

    Args:
        apply_fn: `apply_fn(params, tokens [n, length]) -> logits [n, length, vocab]`, causal, called
            without a key: Dropout is off.
        prompts: tokens, Python integers, at least one in each prompt. The longest and the shortest prompt
            determine the shapes.
        reward_fn: `reward_fn(prompts, completions, **columns) -> rewards`, called on the host with two lists
            of lists of tokens. A completion ends with its stop token, if it has one.
        max_tokens: as in `sampler`.
        group_size: completions of each prompt.
        batch_size: completions of a batch, a multiple of `group_size`; `None` puts every prompt in every
            batch. The prompts of a batch are drawn without repetition.
        temperature: above 0. At temperature 0 there are no log-probabilities: use `sampler`.
        top_k: as in `sampler`.
        top_p: as in `sampler`.
        renormalize: as in `sampler`.
        stop_tokens: as in `sampler`.
        pad_token: as in `sampler`.
        advantage_fn: `advantage_fn(rewards [n], group_size) -> advantages [n]`.
        columns: for each name one value for each prompt, such as the right answer. The reward function
            receives it as a list with one value for each completion.
        seed: in [0, 2**32); sources with different seeds draw differently from one state.
        stateful: call `apply_fn(params, model_state, tokens)`, and pass the pair `(params, model_state)` as
            params to `decode` and `init_cache`.
        init_cache: as in `sampler`.
        decode: as in `sampler`.
        compile: as in `sampler`.

    Raises:
        ValueError, TypeError: if an option is out of its range, a batch does not divide into groups or needs
            more prompts than given, or a column has another length than the prompts.

    Reference: groups, Shao et al., arXiv:2402.03300.

    >>> import purestep as ps
    >>> apply = lambda params, tokens: params["table"][tokens]
    >>> state = ps.TrainState.create({"table": mx.zeros((4, 4))}, ps.optimizers.sgd(0.1))
    >>> longer = lambda prompts, completions: [len(completion) for completion in completions]
    >>> source = rollout(apply, [[1], [2, 1]], longer, max_tokens=3, stop_tokens=[0], compile=False)
    >>> batch = source.at(state)
    >>> batch["tokens"].shape, batch["behavior_logps"].shape, batch["rewards"].shape
    ((16, 5), (16, 4), (16,))
    """
    caller = "rollout"
    check_prompts(caller, prompts)
    checks.function(caller, "apply_fn", apply_fn)
    if batch_size is None:
        batch_size = checks.integer(caller, "group_size", group_size, least=1) * len(prompts)
    task = _Task(prompts, reward_fn, advantage_fn, dict(columns or {}), group_size, batch_size, seed)
    task = task.checked(caller)
    temperature = checks.number(caller, "temperature", temperature, above=0)
    drawing = Drawing(max_tokens, temperature, top_k, top_p, renormalize, stop_tokens, pad_token)
    forward = (lambda both, tokens: apply_fn(*both, tokens)) if stateful else apply_fn
    model = Model(forward, init_cache, decode, compile).checked(caller)
    return Rollout(Sampler(model, drawing.checked(caller)), task, stateful=stateful)
