"""All transforms that the laws are tested with; a new transform needs one line here."""

from collections.abc import Callable

import mlx.core as mx

import purestep as ps
from purestep import optimizers, schedules, transforms

CATALOGUE: dict[str, Callable[[], ps.GradientTransform]] = {
    "identity": ps.identity,
    "chain of nothing": ps.chain,
    "clip_by_global_norm": lambda: transforms.clip_by_global_norm(0.5),
    "scale": lambda: transforms.scale(-0.3),
    "scale_by_learning_rate": lambda: transforms.scale_by_learning_rate(0.1),
    "scale_by_learning_rate, scheduled": lambda: transforms.scale_by_learning_rate(
        schedules.linear(1.0, 0.0, 5)
    ),
    "scale_by_adam": transforms.scale_by_adam,
    "scale_by_adam, nesterov": lambda: transforms.scale_by_adam(nesterov=True, eps_root=1e-8),
    "scale_by_adam, mu in bfloat16": lambda: transforms.scale_by_adam(mu_dtype=mx.bfloat16),
    "add_decayed_weights": lambda: transforms.add_decayed_weights(0.1),
    "add_decayed_weights, masked": lambda: transforms.add_decayed_weights(0.1, mask=transforms.matrices),
    "trace": lambda: transforms.trace(0.9),
    "trace, nesterov": lambda: transforms.trace(0.9, nesterov=True),
    "accumulate": lambda: transforms.accumulate(optimizers.adam(0.1), every=2),
    "sgd": lambda: optimizers.sgd(0.1, momentum=0.9),
    "adam": lambda: optimizers.adam(1e-2),
    "adamw": lambda: optimizers.adamw(schedules.warmup_cosine_decay(0.0, 1e-2, 2, 6), weight_decay=0.1),
    "clip, then adamw": lambda: ps.chain(transforms.clip_by_global_norm(1.0), optimizers.adamw(1e-2)),
    "scale_by_rms": lambda: transforms.scale_by_rms(),
    "scale_by_rms, corrected": lambda: transforms.scale_by_rms(eps_in_sqrt=False, bias_correction=True),
    "scale_by_stddev": lambda: transforms.scale_by_stddev(eps=1e-4),
    "scale_by_stddev, corrected": lambda: transforms.scale_by_stddev(eps=1e-2, bias_correction=True),
    "scale_by_rss": lambda: transforms.scale_by_rss(),
    "scale_by_lion": lambda: transforms.scale_by_lion(),
    "scale_by_lion, smooth, mu in bfloat16": lambda: transforms.scale_by_lion(
        mu_dtype=mx.bfloat16, mode="smooth"
    ),
    "scale_by_lion, refined": lambda: transforms.scale_by_lion(mode="refined"),
    "scale_by_sign": lambda: transforms.scale_by_sign(),
    "scale_by_adamax": lambda: transforms.scale_by_adamax(),
    "scale_by_amsgrad": lambda: transforms.scale_by_amsgrad(),
    "scale_by_amsgrad, uncorrected": lambda: transforms.scale_by_amsgrad(
        eps_root=1e-8, bias_correction_mu=False, bias_correction_nu=False
    ),
    "scale_by_belief": lambda: transforms.scale_by_belief(),
    "scale_by_belief, nesterov": lambda: transforms.scale_by_belief(nesterov=True),
    "scale_by_yogi": lambda: transforms.scale_by_yogi(),
    "scale_by_radam": lambda: transforms.scale_by_radam(),
    "scale_by_radam, soon adapting": lambda: transforms.scale_by_radam(b2=0.9, threshold=4.0, nesterov=True),
    "scale_by_novograd": lambda: transforms.scale_by_novograd(),
    "scale_by_novograd, decayed": lambda: transforms.scale_by_novograd(
        weight_decay=0.1, mu_dtype=mx.bfloat16
    ),
    "scale_by_adadelta": lambda: transforms.scale_by_adadelta(),
    "scale_by_rprop": lambda: transforms.scale_by_rprop(0.1),
    "rmsprop, centered": lambda: optimizers.rmsprop(0.1, eps=1e-4, centered=True, momentum=0.9),
    "lion": lambda: optimizers.lion(1e-2),
    "signum": lambda: optimizers.signum(1e-2),
    "adadelta": lambda: optimizers.adadelta(0.1, weight_decay=0.1),
    "rprop": lambda: optimizers.rprop(0.1),
    "muon": lambda: optimizers.muon(0.1),
    "muon, flattened and decayed": lambda: optimizers.muon(
        0.1,
        ns_steps=2,
        weight_decay=0.1,
        nesterov=False,
        adaptive=True,
        preconditioning="aol",
        matrices=lambda path, leaf: leaf.ndim >= 2,
        consistent_rms=0.2,
        mu_dtype=mx.bfloat16,
    ),
    "muon, in bfloat16": lambda: optimizers.muon(0.1, ns_steps=2, ns_dtype=mx.bfloat16),
    "matrices_and_rest": lambda: transforms.matrices_and_rest(transforms.scale(2.0), transforms.trace(0.9)),
    "scale_by_adan": transforms.scale_by_adan,
    "adan": lambda: optimizers.adan(0.1, weight_decay=0.1),
    "scale_by_ademamix": lambda: transforms.scale_by_ademamix(
        b3=schedules.linear(0.5, 0.9, 5), mu_dtype=mx.bfloat16
    ),
    "ademamix": lambda: optimizers.ademamix(0.1),
    "scale_by_simplified_ademamix": lambda: transforms.scale_by_simplified_ademamix(alpha=2.0),
    "simplified_ademamix": lambda: optimizers.simplified_ademamix(0.01, weight_decay=0.1),
    "scale_by_adopt": lambda: transforms.scale_by_adopt(nesterov=True, mu_dtype=mx.bfloat16),
    "adopt": lambda: optimizers.adopt(0.1),
    "scale_by_distance_over_gradients": lambda: transforms.scale_by_distance_over_gradients(reps_rel=0.1),
    "scale_by_dog, first by learning rate": lambda: transforms.scale_by_dog(("learning_rate", 0.1)),
    "dog": lambda: optimizers.dog(init_step=("heuristic", 0.1), weight_decay=0.1),
    "scale_by_dowg": transforms.scale_by_dowg,
    "dowg": lambda: optimizers.dowg(init_estim_sq_dist=0.1, weight_decay=0.1),
    "madgrad": lambda: optimizers.madgrad(0.1, weight_decay=0.1),
    "prodigy": lambda: optimizers.prodigy(estim_lr0=0.1, weight_decay=0.1),
    "prodigy, safeguarded": lambda: optimizers.prodigy(
        schedules.linear(0.0, 1.0, 3), estim_lr0=0.1, safeguard_warmup=True
    ),
    "dadapt_adamw": lambda: optimizers.dadapt_adamw(
        schedules.linear(0.0, 1.0, 3), estim_lr0=0.1, weight_decay=0.1
    ),
    "schedule_free": lambda: transforms.schedule_free(optimizers.sgd(0.1), 0.1, state_dtype=mx.bfloat16),
    "schedule_free_sgd": lambda: optimizers.schedule_free_sgd(0.1, warmup_steps=2, weight_decay=0.1),
    "schedule_free_adamw": lambda: optimizers.schedule_free_adamw(0.1, weight_decay=0.1),
    "sophia, without estimates": lambda: optimizers.sophia(0.1),
    "masked": lambda: transforms.masked(optimizers.adam(0.1), transforms.matrices),
    "masked, by path and leaf": lambda: transforms.masked(
        optimizers.adam(0.1), lambda path, leaf: leaf.ndim == 1
    ),
    "freeze": lambda: transforms.freeze(lambda path, leaf: leaf.ndim == 1),
    "set_to_zero": transforms.set_to_zero,
    "partition": lambda: transforms.partition(
        {"matrices": optimizers.adamw(0.1), "others": optimizers.sgd(0.1, momentum=0.9)},
        lambda params: ps.tree.map(lambda p: "matrices" if p.ndim >= 2 else "others", params),
    ),
    "partition, by pattern": lambda: transforms.partition(
        {"a": optimizers.adam(0.1), "rest": transforms.set_to_zero()}, [("*a*", "a"), ("*", "rest")]
    ),
    "named_chain": lambda: transforms.named_chain(
        ("clip", transforms.clip_by_global_norm(1.0)), ("adam", optimizers.adam(0.1))
    ),
    "skip_nonfinite": lambda: transforms.skip_nonfinite(optimizers.adam(0.1)),
    "apply_if_finite": lambda: transforms.apply_if_finite(optimizers.adam(0.1), 2),
    "conditionally_mask": lambda: transforms.conditionally_mask(
        optimizers.adam(0.1), lambda step: step % 2 == 0
    ),
    "conditionally_transform": lambda: transforms.conditionally_transform(
        optimizers.adam(0.1), lambda step: step % 2 == 0
    ),
    "zero_nans": transforms.zero_nans,
    "inject_hyperparams": lambda: transforms.inject_hyperparams(optimizers.adamw)(
        schedules.linear(1.0, 0.0, 5), weight_decay=0.1
    ),
    "ema": lambda: transforms.ema(0.9),
    "ema, biased, in bfloat16": lambda: transforms.ema(0.9, debias=False, accumulator_dtype=mx.bfloat16),
    "averaged": lambda: transforms.averaged(optimizers.adam(0.1), 0.9),
    "averaged, polyak": lambda: transforms.averaged(optimizers.adam(0.1), None, start=1),
    "lookahead": lambda: transforms.lookahead(optimizers.adam(0.1), sync_period=2, slow_step_size=0.5),
    "lookahead, reset": lambda: transforms.lookahead(optimizers.adam(0.1), 2, 0.5, reset_state=True),
    "apply_every": lambda: transforms.apply_every(2),
    "dynamic_loss_scale": lambda: transforms.dynamic_loss_scale(optimizers.adam(0.1), growth_interval=2),
    "flatten": lambda: transforms.flatten(optimizers.adam(0.1)),
    "snapshot": lambda: transforms.snapshot("norm", ps.tree.norm),
    "monitor": lambda: transforms.monitor({"norm": ps.tree.norm, "ema": transforms.ema(0.9)}),
    "reduce_on_plateau": lambda: transforms.reduce_on_plateau(0.5, patience=1),
    "clip": lambda: transforms.clip(0.5),
    "clip_by_block_rms": lambda: transforms.clip_by_block_rms(0.5),
    "adaptive_grad_clip": lambda: transforms.adaptive_grad_clip(0.1),
    "keep_params_nonnegative": transforms.keep_params_nonnegative,
    "scale_by_trust_ratio": lambda: transforms.scale_by_trust_ratio(1e-3, eps=1e-6),
    "lamb": lambda: optimizers.lamb(1e-2, weight_decay=0.1),
    "lars": lambda: optimizers.lars(1e-2, 0.1, transforms.matrices, trust_ratio_mask=transforms.matrices),
    "scale_by_param_block_norm": transforms.scale_by_param_block_norm,
    "scale_by_param_block_rms": transforms.scale_by_param_block_rms,
    "step_on_sphere": lambda: transforms.step_on_sphere(0.1),
    "fromage": lambda: optimizers.fromage(schedules.linear(0.1, 0.01, 5)),
    "scale_by_factored_rms": transforms.scale_by_factored_rms,
    "scale_by_factored_rms, small": lambda: transforms.scale_by_factored_rms(min_dim_size_to_factor=2),
    "adafactor": lambda: optimizers.adafactor(
        1e-2, min_dim_size_to_factor=2, momentum=0.9, weight_decay_rate=1e-3
    ),
    "scale_by_sm3": lambda: transforms.scale_by_sm3(b2=0.9),
    "sm3": lambda: optimizers.sm3(1e-2),
    "scale_by_schedule": lambda: transforms.scale_by_schedule(schedules.linear(1.0, 0.0, 5)),
    "centralize": transforms.centralize,
    "normalize_by_update_norm": transforms.normalize_by_update_norm,
    "add_noise": lambda: transforms.add_noise(0.1, 0.55, key=0),
    "noisy_sgd": lambda: optimizers.noisy_sgd(0.1, key=1),
    "scale_by_polyak": lambda: transforms.scale_by_polyak(variant="sps+"),
    "polyak_sgd": optimizers.polyak_sgd,
    "scale_by_optimistic_gradient": transforms.scale_by_optimistic_gradient,
    "optimistic_gradient_descent": lambda: optimizers.optimistic_gradient_descent(0.1, beta=0.5),
    "optimistic_adam": lambda: optimizers.optimistic_adam(1e-2, 4e-3),
    "optimistic_adam_v2": lambda: optimizers.optimistic_adam_v2(schedules.linear(0.1, 0.01, 5), beta=0.5),
    "scale_by_width": lambda: transforms.scale_by_width(4.0),
    "mup": lambda: optimizers.mup(optimizers.adam(1e-2), 4.0),
    "round_stochastically": lambda: ps.chain(optimizers.sgd(0.1), transforms.round_stochastically(0)),
    "master_weights": lambda: transforms.master_weights(optimizers.adamw(1e-2)),
}

# Further laws depend on the elements that an update reads. A transform in neither set is elementwise.
READS_ALL_LEAVES = {
    "clip_by_global_norm",
    "clip, then adamw",
    "named_chain",
    "dog",
    "scale_by_dowg",
    "dowg",
    "prodigy",
    "prodigy, safeguarded",
    "dadapt_adamw",
    "skip_nonfinite",
    "apply_if_finite",
    "dynamic_loss_scale",
    "normalize_by_update_norm",
    "scale_by_polyak",
    "polyak_sgd",
    "add_noise",
    "noisy_sgd",
    "round_stochastically",
}
READS_ITS_LEAF = {
    "add_decayed_weights, masked",
    "scale_by_novograd",
    "scale_by_novograd, decayed",
    "muon",
    "muon, flattened and decayed",
    "muon, in bfloat16",
    "matrices_and_rest",
    "scale_by_distance_over_gradients",
    "scale_by_dog, first by learning rate",
    "masked",
    "masked, by path and leaf",
    "freeze",
    "partition",
    "partition, by pattern",
    "clip_by_block_rms",
    "adaptive_grad_clip",
    "scale_by_trust_ratio",
    "lamb",
    "lars",
    "scale_by_param_block_norm",
    "scale_by_param_block_rms",
    "step_on_sphere",
    "fromage",
    "scale_by_factored_rms",
    "scale_by_factored_rms, small",
    "adafactor",
    "scale_by_sm3",
    "sm3",
    "centralize",
    "scale_by_width",
    "mup",
}
