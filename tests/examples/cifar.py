"""mlx-examples' cifar on purestep: a network with BatchNorm on augmented images, with a resumable loop."""

import mlx.core as mx

import purestep as ps


def augmented(batch, key):
    """Flip half of the images and cut 32 x 32 pixels out of their padded versions."""
    flip, shift = mx.random.split(key)
    images = batch["x"]
    flipped = mx.random.bernoulli(0.5, (images.shape[0], 1, 1, 1), key=flip)
    images = mx.where(flipped, images[:, :, ::-1], images)
    padded = mx.pad(images, [(0, 0), (4, 4), (4, 4), (0, 0)])
    corners = mx.random.randint(0, 9, (2,), key=shift)
    size = (*images.shape[:3], images.shape[3])
    return {**batch, "x": mx.slice(padded, corners, axes=(1, 2), slice_size=size)}


def train(model, train, test, *, out, epochs=30, batch_size=256, rate=1e-3, augment=augmented, callbacks=()):
    """Train, evaluate each epoch, log, save and resume; return the result."""
    apply, params, model_state = ps.functional(model)

    def loss_fn(params, model_state, batch, rng):
        logits, model_state = apply(params, batch["x"], rng=rng, model_state=model_state)
        right = (logits.argmax(-1) == batch["y"]).astype(mx.float32)
        loss = ps.losses.cross_entropy(logits, batch["y"])
        return loss, {"accuracy": ps.Mean.of(right)}, model_state

    transform = ps.optimizers.adam(rate)
    batches = ps.data.Batches(train, batch_size, seed=0)
    source = batches if augment is None else ps.data.map(batches, augment, seed=0)
    evaluation = ps.Evaluation(
        ps.eval_step(loss_fn, stateful=True),
        ps.data.Batches(test, batch_size, shuffle=False),
        every=len(source),
        name="test",
    )
    with ps.checkpoint.Checkpointer(out, keep=ps.checkpoint.keep_last(2), metric="test_loss") as checkpointer:
        return ps.fit(
            ps.compiled(ps.train_step(loss_fn, transform, stateful=True)),
            ps.TrainState.create(params, transform, model_state=model_state),
            source,
            epochs=epochs,
            evaluate=evaluation,
            checkpointer=checkpointer,
            callbacks=[ps.callbacks.log(), *callbacks],
        )
