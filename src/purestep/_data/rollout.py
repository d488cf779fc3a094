"""An on-policy source: completions of the current parameters, scored, as a batch for the standard step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx

from purestep._core import checks
from purestep._core.rng import fold_in
from purestep._core.types import Batch, Params, Tree
from purestep._data.completions import check_prompts
from purestep._data.sampling import Decode, Sampler, sampler
from purestep._losses.policy.advantages import group_advantages
from purestep._steps.state import TrainState

RewardFn = Callable[..., Sequence[float]]
AdvantageFn = Callable[[mx.array, int], mx.array]

# What the step draws comes from `split(state.rng)`; folding in 0 would meet the keys of later steps there.
_ROLLOUT = 0x526F6C6C

_LARGEST = 2.0**127


class Rollout:
    """Batches as a pure function of the state: its parameters, its step's key. Made by `rollout`."""

    def __init__(
        self,
        sample: Sampler,
        prompts: Sequence[Sequence[int]],
        reward_fn: RewardFn,
        *,
        group_size: int,
        batch_size: int,
        advantage_fn: AdvantageFn,
        columns: Mapping[str, Sequence[Any]],
        seed: int,
        stateful: bool,
    ):
        self._sample, self._prompts, self._reward_fn = sample, prompts, reward_fn
        self._group_size, self._groups = group_size, batch_size // group_size
        self._advantage_fn, self._columns, self._seed = advantage_fn, columns, seed
        self._stateful = stateful
        lengths = [len(prompt) for prompt in prompts]
        self._shortest, self._longest = min(lengths), max(lengths)

    def at(self, state: TrainState) -> Batch:
        """Sample completions from a state and score them; the same state gives the same bits.

        Waits for the device, and calls the reward function: between steps, never inside one.

        Returns:
            A batch of which every array has `batch_size` rows, the completions of one prompt adjacent, and
            whose shapes are the same at every step: `tokens` int32 [n, length], `completion_mask` and
            `behavior_logps` float32 [n, length - 1], aligned with `tokens[:, 1:]`, and `advantages`,
            `rewards` and `truncated`, float32 [n]; see `Completions` for what they hold.

        Raises:
            ValueError, TypeError: if the reward function returns another number of rewards than completions,
                or one that is not a finite number; if the model's log-probabilities are not finite.
        """
        caller = "rollout"
        key = fold_in(fold_in(state.rng, _ROLLOUT), self._seed)
        pick, draw = mx.random.split(key)
        chosen: Any = range(len(self._prompts))
        if self._groups < len(self._prompts):
            chosen = mx.random.permutation(len(self._prompts), key=pick)[: self._groups].tolist()
        rows = [number for number in chosen for _ in range(self._group_size)]
        prompts = [list(self._prompts[number]) for number in rows]
        params = (state.params, state.model_state) if self._stateful else state.params
        drawn = self._sample(params, prompts, draw, shortest=self._shortest, longest=self._longest)
        assert drawn.logps is not None  # rollout refuses temperature 0
        if not mx.isfinite(drawn.logps).all().item():
            raise checks.error(caller, "the log-probabilities of the model are not finite")
        columns = {name: [column[number] for number in rows] for name, column in self._columns.items()}
        rewards = _rewards(caller, self._reward_fn(prompts, drawn.lists(), **columns), len(rows))
        advantages = self._advantage_fn(rewards, self._group_size)
        if not isinstance(advantages, mx.array):
            raise TypeError(f"{caller}: advantage_fn must return an array, got {type(advantages).__name__}")
        if advantages.shape != rewards.shape:
            raise checks.error(
                caller, f"advantage_fn must return shape {rewards.shape}, got {advantages.shape}"
            )
        return {
            "tokens": drawn.tokens,
            "completion_mask": drawn.completion_mask,
            "behavior_logps": drawn.logps,
            "advantages": advantages,
            "rewards": rewards,
            "truncated": drawn.truncated,
        }


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
    init_cache: Callable[[Params, int, int], Tree] | None = None,
    decode: Decode | None = None,
    compile: bool = True,
) -> Rollout:
    """Build a source of on-policy batches: `source.at(state)` samples from the state and scores the samples.

    Each step completes `batch_size / group_size` prompts, `group_size` times each, hands the completions to
    the reward function, and makes advantages of the rewards within each group. A group whose rewards are all
    equal has advantages of 0: it teaches nothing. A batch is a function of the state alone, so a run that is
    resumed sees what an uninterrupted one does:

        batch = source.at(state)
        state, metrics = step(state, batch)

    A batch may be stepped on more than once; `behavior_logps` stay those of the parameters that drew it.
    To have importance ratios begin at 1, the loss has to score the tokens at the same `temperature`.

    Args:
        apply_fn: `apply_fn(params, tokens [n, length]) -> logits [n, length, vocab]`, causal, run without a
            key: Dropout is off.
        prompts: tokens, Python integers, at least one a prompt. The longest and the shortest set the shapes.
        reward_fn: `reward_fn(prompts, completions, **columns) -> rewards`, called on the host with two lists
            of lists of tokens; a completion ends with its stop token, if it has one.
        max_tokens: the longest completion, in tokens.
        group_size: completions a prompt.
        batch_size: completions a batch, a multiple of `group_size`; every prompt in every batch if `None`.
            The prompts of a batch are drawn without repetition.
        temperature: above 0. What temperature 0 draws has no log-probabilities: use `sampler`.
        top_k: as in `sampler`.
        top_p: as in `sampler`.
        renormalize: as in `sampler`: `behavior_logps` of the truncated distribution.
        stop_tokens: tokens that end a completion.
        pad_token: fills the rows.
        advantage_fn: `advantage_fn(rewards [n], group_size) -> advantages [n]`.
        columns: for each name a value a prompt (an answer to compare with), handed to the reward function
            as a list with a value a completion.
        seed: in [0, 2**32), tells apart the draws of several sources over one state.
        stateful: `apply_fn(params, model_state, tokens)`, and `decode` and `init_cache` with the pair
            `(params, model_state)` for params.
        init_cache: as in `sampler`.
        decode: as in `sampler`.
        compile: compile the function that draws one token.

    Raises:
        ValueError, TypeError: if an option is out of its range, a batch does not divide into groups or needs
            more prompts than there are, or a column is not as long as the prompts.

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
    checks.function(caller, "reward_fn", reward_fn)
    checks.function(caller, "advantage_fn", advantage_fn)
    check_prompts(caller, prompts)
    group_size = checks.integer(caller, "group_size", group_size, least=1)
    seed = checks.integer(caller, "seed", seed, least=0)
    if seed >= 2**32:
        raise checks.error(caller, f"seed must be less than 2**32, got {seed}")
    if batch_size is None:
        batch_size = group_size * len(prompts)
    batch_size = checks.integer(caller, "batch_size", batch_size, least=1)
    if batch_size % group_size:
        raise checks.error(
            caller,
            f"batch_size must be divisible by group_size={group_size}, so that groups are of equal size, "
            f"got {batch_size}",
        )
    if batch_size // group_size > len(prompts):
        raise checks.error(
            caller,
            f"batch_size must be at most {group_size * len(prompts)}, {group_size} a prompt, "
            f"got {batch_size}",
        )
    temperature = checks.number(caller, "temperature", temperature, above=0)
    columns = dict(columns or {})
    for name, column in columns.items():
        if len(column) != len(prompts):
            raise checks.error(
                caller, f"columns[{name!r}] must have a value a prompt, {len(prompts)}, got {len(column)}"
            )
    checks.function(caller, "apply_fn", apply_fn)
    sample = sampler(
        (lambda both, tokens: apply_fn(*both, tokens)) if stateful else apply_fn,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        renormalize=renormalize,
        stop_tokens=stop_tokens,
        pad_token=pad_token,
        init_cache=init_cache,
        decode=decode,
        compile=compile,
    )
    return Rollout(
        sample,
        prompts,
        reward_fn,
        group_size=group_size,
        batch_size=batch_size,
        advantage_fn=advantage_fn,
        columns=columns,
        seed=seed,
        stateful=stateful,
    )


def _rewards(caller: str, rewards: Any, count: int) -> mx.array:
    """Return the rewards as float32 [count], each a finite number."""
    if isinstance(rewards, mx.array) or hasattr(rewards, "tolist"):
        rewards = rewards.tolist()
    if not isinstance(rewards, Sequence) or isinstance(rewards, str):
        raise TypeError(
            f"{caller}: reward_fn must return a sequence of numbers, got a {type(rewards).__name__}"
        )
    if len(rewards) != count:
        raise checks.error(
            caller, f"reward_fn must return {count} rewards, one a completion, got {len(rewards)}"
        )
    rewards = [reward.tolist() if hasattr(reward, "tolist") else reward for reward in rewards]
    for number, reward in enumerate(rewards):
        if not checks.is_number(reward):
            raise TypeError(
                f"{caller}: reward_fn must return numbers, got {reward!r} for completion {number}"
            )
        if not abs(reward) < _LARGEST:  # in float32; false for a NaN too
            raise checks.error(
                caller, f"reward_fn must return finite rewards, got {reward} for completion {number}"
            )
    return mx.array([float(reward) for reward in rewards], mx.float32)
