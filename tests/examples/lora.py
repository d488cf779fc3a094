"""mlx_lm's `train` on purestep: LoRA on records, with validation, reports, checkpoints and resuming."""

import mlx.core as mx
from mlx.utils import tree_flatten

import purestep as ps


def loss_of(apply):
    """Return the loss over the tokens that are to be learnt."""

    def loss_fn(params, batch, rng):
        logits = apply(params, batch["inputs"], rng=rng)
        return ps.losses.cross_entropy(logits, batch["targets"], weights=batch["weights"])

    return loss_fn


def train(
    model, examples, validation, *, out, iters=1000, rate=1e-5, decay=0.01, tokens_per_batch=8192,
    grad_accumulation_steps=1, steps_per_report=10, steps_per_eval=200, steps_per_save=100, source=None,
    callbacks=(),
):  # fmt: skip
    """Train the parameters of a model that are not frozen; write `out/adapters.safetensors`.

    `examples` and `validation` are the results of `ps.data.tokenize_records`.
    """
    apply, params, _ = ps.functional(model)
    loss_fn = loss_of(apply)
    transform = ps.optimizers.adamw(rate, weight_decay=decay)
    if grad_accumulation_steps > 1:
        transform = ps.transforms.accumulate(transform, every=grad_accumulation_steps)
    if source is None:
        source = ps.data.LengthBuckets(examples, tokens_per_batch)
    evaluation = ps.Evaluation(
        ps.compiled(ps.eval_step(loss_fn)), ps.data.LengthBuckets(validation, tokens_per_batch),
        every=steps_per_eval, name="val",
    )  # fmt: skip
    step = ps.compiled(ps.train_step(loss_fn, transform))
    state = ps.TrainState.create(params, transform)
    with ps.checkpoint.Checkpointer(f"{out}/checkpoints", keep=ps.checkpoint.keep_last(3)) as checkpointer:
        result = ps.fit(
            step, state, source, steps=iters, evaluate=evaluation, checkpointer=checkpointer,
            save_every=steps_per_save, log_every=steps_per_report,
            callbacks=[ps.callbacks.log(), ps.callbacks.jsonl(f"{out}/metrics.jsonl"), *callbacks],
        )  # fmt: skip
    mx.save_safetensors(f"{out}/adapters.safetensors", dict(tree_flatten(result.state.params)))
    ps.write_back(model, result.state.params)
    return result
