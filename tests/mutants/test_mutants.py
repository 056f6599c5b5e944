"""The oracles have teeth: each mutant of the mathematics breaks one rule, and the tests of that rule must fail on it.

`mutation` explains patterns. scripts/random_mutants.py makes mutants at random.
"""

import ast

import pytest

from tests.mutants.child import run_tests
from tests.mutants.mutation import PlaceError, find_function, mutated

# rule: (function, pattern, replacement, tests that must fail: file::-k expression, and which of several places)
# fmt: off
MUTANTS = {
    "eps: downhill": ("sam.perturbation.perturbation", "A / norm", "-A / norm", "sam/test_sam.py::first_order"),
    "eps: half of rho": ("sam.perturbation.perturbation", "A / norm", "A / 2 / norm", "sam/test_sam.py::three_steps"),
    "eps: norm squared":
        ("sam.perturbation.perturbation", "A / norm", "A / norm**2", "sam/test_agreement.py::perturbation_of_a_network"),
    "eps: zero over zero":
        ("sam.perturbation.perturbation", "A.masked_fill(B == 0, 0.0)", "A", "sam/test_epsilon.py::zero_gradient"),
    "eps: wrong conjugate":
        ("sam.perturbation.epsilon", "A / (A - 1)", "A", "sam/test_epsilon.py::closed_form_values"),
    "eps: sign lost":
        ("sam.perturbation.epsilon", "A.sign() * B.pow(C) * D", "B.pow(C) * D", "sam/test_epsilon.py::maximiser"),
    "eps: exponent of the norm":
        ("sam.perturbation.epsilon", "A.pow(1 / B)", "A.pow(1 / 2)", "sam/test_epsilon.py::closed_form_values"),
    "eps: ties are not shared":
        ("sam.perturbation.epsilon", "A * tie / num_ties", "A * tie", "sam/test_epsilon.py::equal_largest"),
    "eps: not divided by the largest first":
        ("sam.perturbation.epsilon", "grad / A", "grad", "sam/test_epsilon.py::float32_neither"),
    "eps: an infinity is hidden":
        ("sam.perturbation.epsilon", "rho + 0 * A", "rho + 0 * A.isnan()", "sam/test_epsilon.py::non_finite"),
    "eps: the norm is accumulated in float32":
        ("sam.perturbation.norm_of", "A.double().sum()", "A.half().sum()", "sam/test_epsilon.py::norm_over"),
    "w + eps: the gradient at w": (
        "sam.perturbation.perturbed_parameters", "torch.addcmul(A, B, C, out=D)", "D.copy_(A)",
        "sam/test_sam.py::linear_loss"),
    "w + eps: beside the gradient":
        ("sam.method.Method.accumulate", "A.at(B)", "A.at(B, keep=True)", "sam/test_step.py::most_one_extra"),
    "w: stays swapped":
        ("sam.parameter_swap.swapped_parameters", "param.data = original", "pass", "sam/test_sam.py::weights_are_restored"),
    "w: restored only without an error": (
        "sam.parameter_swap.swapped_parameters", "try:\n A\nfinally:\n B", "A\nB",
        "sam/test_sam.py::restored_when_the_second"),
    "step: a number is read off the device":
        ("sam.perturbation.perturbation", "norm == 0", "norm.item() == 0", "sam/test_step.py::reads_no_number"),
    "step: a second pass at rho 0": (
        "sam.step.SamStep.choose_method", "is_zero(A)", "False", "sam/test_method.py::rho_zero_is_the_base"),
    "step: other masks in the second pass":
        ("sam.method.Group._begin_pass", "A.restore(...)", "pass", "sam/test_step.py::both_passes_see"),
    "step: groups are ignored":
        ("sam.step.SamStep.take", "A.split(B)", "A.split(None)", "sam/test_sam.py::least_squares"),
    "step: the sum over groups instead of the mean":
        ("sam.step.SamStep.take", "A * B / C", "A", "sam/test_sam.py::identical_groups"),
    "step: groups are weighted equally":
        ("sam.step.SamStep.take", "A * B / C", "A / len(batches)", "sam/test_sam.py::groups_of_unequal"),
    "step: norms are summed over groups":
        ("sam.step._mean_over_groups", "A * B", "A", "sam/test_random_direction.py::neither_gradient"),
    "step: the norm keeps the loss scale":
        ("sam.step.SamStep.take", "A / B.scale(C)", "A", "sam/test_precision.py::perturbation_does_not_depend"),
    "step: statistics of a non-finite step stay":
        ("sam.step.SamStep.take", "A.restore(...)", "pass", "sam/test_precision.py::any_pass"),
    "second order: dropped": (
        "sam.methods.second_order.SecondOrder.accumulate", "A.add_(B)", "A", "sam/test_sam.py::second_order_term"),
    "second order: doubled": (
        "sam.methods.second_order.SecondOrder.accumulate", "A.add_(B)", "A.add_(B, alpha=2)",
        "sam/test_agreement.py::functional_twin"),
    "second order: shaken":
        ("sam.objective.Objective.gradient", "with true_gradient(A): B", "B",
         "models/test_models_shake.py::second_order", 0),
    "k steps: one":
        ("sam.methods.k_step.KStep.perturb", "range(A - 1)", "range(0)", "sam/test_sam.py::further_ascent_steps"),
    "k steps: no projection": (
        "sam.methods.k_step.KStep._project", "A.clamp(max=1.0)", "torch.ones_like(A)",
        "sam/test_sam.py::further_ascent_steps"),
    "k steps: the norm of the last gradient is reported": (
        "sam.methods.k_step.KStep.perturb", "grad_norm=A.grad_norm", "grad_norm=eps.grad_norm",
        "sam/test_sam.py::further_ascent_steps"),
    "random direction: the gradient's length": (
        "sam.methods.random_direction.RandomDirection.perturb", "A / norm", "A / grad_norm",
        "sam/test_random_direction.py::its_length"),
    "random direction: a cube, not a ball": (
        "sam.methods.random_direction.RandomDirection.perturb", "torch.randn(...)",
        "2 * torch.rand(grad.shape, generator=draws, dtype=grad.dtype, device=grad.device) - 1",
        "sam/test_random_direction.py::coordinates"),
    "random direction: by the weights' layout": (
        "sam.methods.random_direction.RandomDirection.perturb", "A.copy_(B)", "A.normal_(generator=draws)",
        "sam/test_random_direction.py::neither_gradient"),
    "random direction: the gradient has a share": (
        "sam.methods.random_direction.RandomDirection.perturb", "A.copy_(B)", "A.add_(B)",
        "sam/test_random_direction.py::neither_gradient"),
    "random direction: the same in every step": (
        "sam.methods.random_direction.RandomDirection.perturb", "A.number", "0",
        "sam/test_random_direction.py::other_seeds_and_steps", 1),
    "random direction: the same for every seed": (
        "sam.methods.random_direction.RandomDirection.perturb", "self.seed", "0",
        "sam/test_random_direction.py::other_seeds_and_steps"),
    "random direction: a recording repeats it": (
        "sam.cuda_graph.capture_blocker", "step.method.capture_blocker", "''",
        "sam/test_random_direction.py::recording", 0),
    "method: state of a non-finite step":
        ("sam.method.Method.commit", "A.all()", "~A.all() | A.all()", "sam/test_method.py::not_finite_leaves_the_state"),
    "method: the gradient at w is not combined":
        ("sam.method.Group._sum_gradient", "A.extend(B)", "pass", "sam/test_method.py::uses_all_hooks"),
    "objective: micro-batches are weighted equally":
        ("sam.objective.Objective._passes", "len(A) / B", "1 / len(chunks)", "sam/test_sam.py::accumulation_shares"),
    "objective: decay in one pass": (
        "sam.objective.Objective._passes", "A if self._weight_decay else B", "A if update_statistics else B",
        "sam/test_sam.py::weight_decay_in_the_loss"),
    "objective: decay is not halved":
        ("sam.objective.Objective._penalty", "A / 2", "A", "sam/test_agreement.py::training_equals_numpy"),
    "objective: the ascent is shaken": (
        "sam.objective.Objective.gradient", "with true_gradient(A): B", "B",
        "models/test_models_shake.py::ascent_uses", 1),
    "update: not clipped":
        ("sam.optimizer_step.OptimizerStep._clip", "clip_grads_with_norm_(...)", "pass", "sam/test_sam.py::only_the_final"),
    "update: the first pass is not checked": (
        "sam.optimizer_step.OptimizerStep._scaled", "A.masked_fill(...)", "A",
        "sam/test_precision.py::second_pass_does_not_show"),
    "update: the scale grows twice": (
        "sam.optimizer_step.OptimizerStep._scaled", "A.update()", "A.update(), A.update()", "sam/test_precision.py::clean_step"),
    "update: made although not finite": (
        "sam.optimizer_step.OptimizerStep.__call__", "(~A.all()).to(B)", "A.all().to(B) * 0",
        "sam/test_step.py::not_finite_leaves_weights"),
    "update: momentum starts uninitialised":
        ("sam.optimizer_step.OptimizerStep.__init__", "_start_momentum(A)", "pass", "sam/test_step.py::not_finite_leaves_weights"),
    "update: the final gradient is not checked": (
        "sam.optimizer_step.OptimizerStep.__call__", "[A, B.isfinite()[None]]", "[A, A[:1]]", "sam/test_step.py::what_is_not_finite"),
    "statistics: the second pass counts": (
        "sam.objective.Objective._passes", "A if update_statistics else B", "A if update_statistics else nullcontext()",
        "sam/test_batch_statistics.py::one_update_per_step"),
    "statistics: the second pass uses the running ones": (
        "sam.batch_statistics.RunningStatistics.frozen", "A.track_running_stats = False", "A.training = False",
        "sam/test_batch_statistics.py::both_passes_normalise"),
    "statistics: every group counts": (
        "sam.batch_statistics.RunningStatistics.single_statistics_update", "A <= 1 and B", "True",
        "sam/test_batch_statistics.py::groups_and_micro"),
    "statistics: groups are weighted equally": (
        "sam.batch_statistics._Mean.add", "alpha=A", "alpha=1", "sam/test_batch_statistics.py::groups_and_micro"),
    "statistics: a pass starts where the last one ended": (
        "sam.batch_statistics.RunningStatistics.accumulate_statistics", "A.begin()", "pass",
        "sam/test_batch_statistics.py::groups_and_micro"),
    "statistics: every group counts as a batch": (
        "sam.batch_statistics._Mean.begin", "_copy(self._counts, A)", "pass", "sam/test_batch_statistics.py::groups_and_micro"),
    "statistics: an exception does not restore them": (
        "sam.batch_statistics._Mean.restore", "_copy(self._buffers, A)", "pass", "sam/test_batch_statistics.py::raises"),
    "statistics: instance norm counts at w + eps": (
        "sam.batch_statistics._ignores_tracking", "isinstance(...)", "False", "sam/test_batch_statistics.py::instance_norm"),
    "statistics: of ranks without their weight": (
        "sam.batch_statistics._Mean.write", "self._weight / A", "1 / A", "distributed/test_distributed.py::mean_of_ranks"),
    "spectral norm: iterates at w + eps": (
        "sam.spectral_norm.PowerIterations.stopped", "A._stop()", "pass", "sam/test_spectral_norm.py::frozen_pass"),
    "spectral norm: every group iterates": (
        "sam.spectral_norm.PowerIterations.end_pass", "self._is_single", "False", "sam/test_spectral_norm.py::step_iterates"),
    "spectral norm: a non-finite step moves the vectors": (
        "sam.batch_statistics.RunningStatistics._all", "A.vectors()", "[]", "sam/test_spectral_norm.py::not_finite"),
    "shake: the descent is not shaken": (
        "models.layers.shake.ShakeLayer._scale", "self.true_gradient", "True", "models/test_models_shake.py::plain_step"),
    "shake: the true gradient stays on": (
        "sam.random_branches.true_gradient", "layer.true_gradient = False", "pass", "models/test_models_shake.py::error_ends"),
    "shake: a dropped branch is scaled up": (
        "models.layers.shake.ShakeDrop.forward", "A * self.keep", "A", "models/test_models_shake.py::shakedrop_keeps"),
    "ranks: uneven ones count equally": (
        "distributed.context.DistributedContext.batch_weight", "A * B / C", "1.0", "distributed/test_distributed.py::parts_are"),
    "ranks: each evaluates all batches": (
        "data.loader.ImageLoader._local_batches", "A[B :: C]", "A", "distributed/test_distributed.py::ranks_evaluate"),
    "ranks: norms count once a rank": (
        "training.metrics.TrainMeter.add", "A.grad_norm * B", "A.grad_norm", "distributed/test_distributed.py::sums_of_ranks"),
    "ranks: another error than the first is named": (
        "distributed.context.DistributedContext.attribute_error", "A == 1", "A == 0",
        "distributed/test_distributed.py::first_error", 1),
    "seeds: keys run together":
        ("utils.seeding.derive_seed", "repr(A)", "str(sum(map(hash, A)))", "utils/test_seeding.py::keys"),
    "seeds: the global stream moves": (
        "utils.seeding.make_generator", "torch.Generator(A)", "torch.default_generator", "utils/test_seeding.py::leaves_the_global"),
    "seeds: NumPy's is left out":
        ("utils.seeding.seed_everything", "np.random.seed(A)", "pass", "utils/test_seeding.py::all_three"),
    "seeds: nothing is replayed": ("utils.seeding.RngState.restore", "torch.set_rng_state(A)", "pass", "utils/test_seeding.py::replay"),
    "order: the same in every epoch": (
        "data.loader.ImageLoader._batches", "make_generator(A, 'order', B)", "make_generator(A, 'order', 0)",
        "data/test_loader.py::order_is"),
    "order: a resumed epoch starts again":
        ("data.loader.ImageLoader._local_batches", "A[start:B]", "A[0:B]", "data/test_loader.py::epoch_from_a_start"),
    "augment: draws by the place in the batch": (
        "data.loader.ImageLoader._batches", "table[A]", "table[: len(A)]", "data/test_loader.py::augmentation_of_an_image"),
    "augment: the same in every epoch": (
        "data.augment.augmentation.draw_table", "make_generator(A, 'augmentation', B)", "make_generator(A, 'augmentation', 0)",
        "data/augment/test_augmentation.py::other_seeds_and_epochs"),
    "augment: padding repeats the edge": (
        "data.augment.augmentation._reflected_index", "2 * (A - 1)", "2 * A - 1", "data/augment/test_augmentation.py::unfold_crops_equal"),
    "augment: one crop is never drawn": (
        "data.augment.augmentation.crop_and_flip", "2 * A + 1", "2 * A", "data/augment/test_augmentation.py::crop_and_flip"),
    "augment: a rectangle that does not fit is kept": (
        "data.augment.augmentation.erase_rectangle", "A.argmax(...)", "A[:, :1] * 0",
        "data/augment/test_augmentation.py::erase_equals"),
    "mixing: shares are swapped": (
        "data.augment.mixing.mix_batch", "torch.lerp(A, B, lam)", "torch.lerp(B, A, lam)",
        "data/augment/test_mixing.py::mixup_is_exact", 0),
    "mixing: labels by lambda, not by the area": (
        "data.augment.mixing.mix_batch", "lam = 1 - A", "pass", "data/augment/test_mixing.py::cutmix_is_exact"),
    "mixing: batches are counted from the resumed one": (
        "data.loader.ImageLoader._batches", "enumerate(A, start)", "enumerate(A, 0)", "data/augment/test_mixing.py::loader_mixes"),
    "mixing: the loss takes the labels": (
        "training.loop._train_step", "A.targets", "A.labels", "data/augment/test_mixing.py::trainer_learns"),
    "policy: the same in every epoch": (
        "data.augment.policy.apply_policy", "derive_seed(A, B, C, D)", "derive_seed(A, B, D)",
        "data/augment/test_policy.py::does_not_depend_on_its_batch"),
    "policy: the global stream moves": (
        "data.augment.policy.apply_policy", "with torch.random.fork_rng(devices=[]): A", "A",
        "data/augment/test_policy.py::does_not_depend_on_its_batch"),
    "noise: the true class is drawn": (
        "data.noise.symmetric", "torch.randint(1, A, B, generator=C)", "torch.randint(0, A, B, generator=C)",
        "data/test_noise.py::true_class_is_never"),
    "noise: every example has the mean rate": ("data.noise.instance", "A < rates", "A < rate", "data/test_noise.py::instance_noise_changes"),
    "noise: superclasses go the other way": (
        "data.noise.asymmetric", "A.roll(-1)", "A.roll(1)", "data/test_noise.py::superclass"),
    "noise: human labels by place": (
        "data.noise.human", "A[B.argsort(stable=True)] = C", "A[:] = C", "data/datasets/test_cifar.py::published_order"),
    "noise: on held-out images": (
        "data.splits.hold_out", "A.with_labels(A.clean_labels)", "A", "data/datasets/test_cifar.py::human_labels_stay"),
    "splits: the part depends on chance": (
        "data.splits.subsample", "make_generator(A, B)", "make_generator(torch.seed(), B)", "data/test_splits.py::subsamples_are"),
    "splits: training images are held out": (
        "data.splits.hold_out", "A[num_held_out:]", "A[num_held_out - 1 :]", "data/test_splits.py::hold_out_is_exact"),
    "svhn: ten stays ten": ("data.datasets.svhn", "A % 10", "A - 1", "data/datasets/test_svhn.py::images_and_digits"),
    "normalisation: sample variance of a channel": (
        "data.loader.Normalisation.from_images", "variance**0.5", "variance", "data/test_loader.py::normalisation_equals"),
    "schedule: cosine over twice the steps":
        ("training.schedules.cosine", "math.pi * A", "math.pi * A / 2", "training/test_schedules.py::cosine"),
    "schedule: warm-up starts from 0":
        ("training.schedules._add_warmup", "A + 1", "A", "training/test_schedules.py::warmup_rises"),
    "schedule: warm-up takes no steps from the rest":
        ("training.schedules._add_warmup", "A - B", "A", "training/test_schedules.py::remaining_steps", 0),
    "schedule: a milestone comes one step late":
        ("training.schedules.step", "A >= B", "A > B", "training/test_schedules.py::exactly_at"),
    "schedule: rho does not follow its own": (
        "training.schedules.build_rho", "A * B(C)", "A", "training/test_loop.py::rho_schedules"),
    "metrics: of equal logits none is first": (
        "training.metrics.evaluation_metrics", "A & is_lower_class", "A", "training/test_metrics.py::top_five"),
    "metrics: a sixth class counts":
        ("training.metrics.evaluation_metrics", "A < 5", "A <= 5", "training/test_metrics.py::top_five"),
    "metrics: calibration bins open on the right": (
        "training.metrics.calibration_error", "A.ceil()", "(A + 1).floor()", "training/test_metrics.py::closed_on_the_right"),
    "metrics: classes in columns":
        ("training.metrics.confusion_matrix", "A * B + C", "C * B + A", "training/test_metrics.py::true_classes_in_rows"),
    "metrics: non-finite steps are counted in":
        ("training.metrics.TrainMeter.add", "A.masked_fill(...)", "A", "training/test_metrics.py::nonfinite_step"),
    "loop: the number of a step within its epoch": (
        "training.loop._train_step", "run.step(A, B, progress.step)", "run.step(A, B, progress.batch)",
        "sam/test_random_direction.py::trainer"),
    "loop: the last epoch is not evaluated": (
        "training.loop._end_epoch", "A or B % C == 0", "B % C == 0", "training/test_loop.py::eval_every"),
    "loop: the test set chooses": (
        "training.loop._record_evaluation", "'validation/accuracy'", "'test/accuracy'", "training/test_loop.py::only_the_validation"),
    "fine-tuning: a head half loaded": (
        "models.pretrained.load_weights", "A.startswith(B)", "False", "models/test_models_finetune.py::head_is_loaded", 1),
    "fine-tuning: statistics are not frozen": (
        "models.frozen_batchnorm", "A.train = B", "A.train()", "models/test_models_finetune.py::frozen_statistics"),
    "optimizers: the update is recorded": (
        "training.compiler_free_optimizers", "torch.set_grad_enabled(A)", "torch.enable_grad()",
        "training/test_compiler_free_optimizers.py::gradients"),
    "resume: the generator": ("training.state.restore_state", "A.restore(B)", "pass", "training/test_resume.py::stopped_after_any_step and direction"),
    "resume: the optimizer": (
        "training.state.restore_state", "load_full_optimizer_state(...)", "pass", "training/test_resume.py::stopped_after_any_step and direction"),
    "resume: the method's state": (
        "training.state.restore_state", "run.step.method.load_state_dict(A)", "pass", "training/test_method_state.py::resumed"),
    "resume: the place in the epoch": (
        "training.loop._train_epoch", "A.epoch(B, start=C)", "A.epoch(B)", "training/test_resume.py::stopped_after_any_step and direction"),
    "resume: sums since the last row": (
        "training.loop._train_epoch", "A.window_sums = B", "pass", "training/test_resume.py::stopped_after_any_step and direction"),
    "resume: the oldest checkpoint":
        ("training.checkpoints.CheckpointFolder._list_manifests", "reverse=True", "reverse=False",
         "training/test_checkpoints.py::highest_step"),
    "resume: a damaged checkpoint is used": (
        "training.checkpoints.CheckpointFolder._load_first_intact", "fault is None", "True",
        "training/test_checkpoints.py::single_bit_flips"),
    "sweep: a run that was killed is still running": (
        "runs.lock", "return False", "return True", "sweeps/test_sweep.py::killed_run"),
}
# fmt: on
FAST = ("-m", "not slow and not gpu and not dist")
UNCHANGED = sorted({tests.split("/")[0] for _, _, _, tests, *_ in MUTANTS.values()})


def selection(tests):
    """Return pytest's arguments for ``file::-k expression``."""
    file, _, names = tests.partition("::")
    return [file, *FAST, "-k", names]


@pytest.mark.parametrize("rule", MUTANTS)
def test_the_mutant_is_killed(rule):
    function, old, new, tests, *place = MUTANTS[rule]
    file, module = mutated(f"sam_runner.{function}", old, new, *place)
    code = run_tests(selection(tests), file, module)
    said = {0: "the mutant survives", 5: f"no test is selected by {tests}"}.get(code, f"pytest ended with code {code}")
    assert code == 1, said


@pytest.mark.parametrize("folder", UNCHANGED)
def test_the_unchanged_package_passes_in_the_same_way(folder):
    chosen = [selection(tests) for _, _, _, tests, *_ in MUTANTS.values() if tests.split("/")[0] == folder]
    files = sorted({file for file, *_ in chosen})
    assert run_tests([*files, *FAST, "-k", " or ".join(f"({words[-1]})" for words in chosen)]) == 0


def changed(old, new, place=None):
    """Return `mutated`'s source of a function below."""
    _, module = mutated(f"{__name__}.example", old, new, place)
    (function,) = [node for node in module.body if getattr(node, "name", "") == "example"]
    return ast.unparse(function.body)


def example(a, b):  # has the places that the next test changes
    total = a + max(b, key=a) + (a + b)
    if total:
        print(total)
    return total


@pytest.mark.parametrize(
    ("old", "new", "place", "line"),
    [
        ("A + B", "A - B", 2, "total = a + max(b, key=a) + (a - b)"),
        ("A + B", "B + A", 0, "total = a + b + (a + max(b, key=a))"),
        ("key=A", "key=(A, A)", None, "total = a + max(b, key=(a, a)) + (a + b)"),
        ("max(...)", "0", None, "total = a + 0 + (a + b)"),
        ("if A: B", "B", None, "    return total"),
        ("print(A)", "pass", None, "        pass"),
        ("total = A", "total = A\nprint(A)", None, "print(a + max(b, key=a) + (a + b))"),
    ],
)
def test_a_pattern_changes_one_place(old, new, place, line):
    assert line.strip() in [text.strip() for text in changed(old, new, place).splitlines()]


@pytest.mark.parametrize(
    ("function", "old", "place", "message"),
    [
        ("sam_runner.sam.step.SamStep.gone", "A", None, "step.py has no SamStep.gone"),
        ("sam_runner.gone.f", "A", None, "no gone.f"),
        (f"{__name__}.example", "A * B", None, "has 0 places like 'A \\* B', wanted one"),
        (f"{__name__}.example", "A + B", None, "has 3 places"),
        (f"{__name__}.example", "A + B", 3, "has 3 places like .*, wanted number 3"),
    ],
)
def test_a_place_that_does_not_exist_is_named(function, old, place, message):
    with pytest.raises(PlaceError, match=message):
        mutated(function, old, "0", place)


def test_a_function_is_found_by_its_dotted_name():
    file, _, node = find_function("sam_runner.sam.methods.sam.Sam.perturb")
    assert (file.name, node.name) == ("sam.py", "perturb")
