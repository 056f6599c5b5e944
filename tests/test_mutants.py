"""The oracles have teeth: each mutant of the core breaks one rule, and the tests of that rule have to fail on it."""

import gc
import inspect
import os
import shutil
import sys
from pathlib import Path

import hydra  # noqa: F401 - what the children need is loaded once
import hypothesis.strategies  # noqa: F401
import pytest
import safetensors.torch  # noqa: F401
import scipy.stats  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
import torchvision.transforms.v2  # noqa: F401
from hydra._internal.config_loader_impl import ConfigLoaderImpl

import sam_runner

ROOT = Path(__file__).resolve().parent.parent
SAM, PERTURBATION, UPDATE, OBJECTIVE = "sam.py", "perturbation.py", "update.py", "objective.py"
BATCHNORM, SCHEDULES, SEEDING = "batchnorm.py", "schedules.py", "seeding.py"
SHAKE, PRETRAINED, NETWORK = "shake.py", "pretrained.py", "network.py"
MIXING, POLICY, AUGMENT, NOISE = (f"data/{name}.py" for name in ("mixing", "policy", "augment", "noise"))
NUMPY = "sam/test_agreement.py::test_training_equals_numpy"

MUTANTS = {
    # name: (file, old, new, tests that must fail)
    "experiments: labels in the order of training": (
        "scoring.py",
        "whole[indices.to(whole.device)]",
        "whole[indices.sort().values]",
        "paper/test_experiments.py::test_relabelled",
    ),
    "reports: a teacher for each seed makes a row each": (
        "records.py",
        "(seed[=_-]?){re.escape",
        "(sead[=_-]?){re.escape",
        "reports/test_report.py::test_labels_of_two",
    ),
    "lean: the update is recorded": (
        "lean.py",
        'torch.set_grad_enabled(self.defaults["differentiable"])',
        "torch.enable_grad()",
        "training/test_compiler_free_optimizers.py::test_gradients",
    ),
    "experiments: the paper's radius is not compared": (
        "paper.py",
        "float(values[here[key]]) != float(value)",
        "False",
        "paper/test_experiments.py::test_a_radius",
    ),
    "paper: an accuracy where it has errors": (
        "comparison.py",
        'accuracy if metric == "accuracy" else 1 - accuracy',
        "accuracy",
        "reports/test_paper_comparison.py::test_an_error_is",
    ),
    "paper: what differs is left out": (
        "comparison.py",
        "if theirs.get(key) != settings.get(key)",
        "if key in settings and theirs.get(key, settings[key]) != settings[key] and key != 'rho'",
        "reports/test_paper_comparison.py::test_what_differs",
    ),
    "paper: runs of any row": (
        "paper.py",
        'if settings["paper"] == self.name:',
        'if self.paper.startswith("table4"):',
        "reports/test_paper_comparison.py::test_rows_that",
    ),
    "resume: a run is made shorter than it is": (
        "launch.py",
        "if done > run.max_steps:",
        "if done > run.max_steps and False:",
        "training/test_resume.py::test_fewer_steps",
    ),
    "resume: the last row of a run that ends where it was stopped is lost": (
        "trainer.py",
        "    if progress.batch == num_batches:",
        "    if progress.batch > num_batches:",
        "training/test_resume.py::test_an_end_at",
    ),
    "places: those of here come first": (
        "places.py",
        "places = (start / value, Path.cwd() / value)",
        "places = (Path.cwd() / value, start / value)",
        "runs/test_relative_paths.py::test_sam_eval",
    ),
    "places: a run is continued without its data": (
        "places.py",
        "(start / value).exists():",
        "not (start / value).exists():",
        "runs/test_relative_paths.py::test_continued",
    ),
    "data: noise on what is held out": (
        "data/sets.py",
        "validation=apart.relabelled(apart.clean_labels)",
        "validation=apart",
        "data/datasets/test_cifar.py::test_human_labels_stay",
    ),
    "data: human labels by place in what is kept": (
        "build.py",
        '        splits = splits.relabelled(construct(node, "noise", all_labels=splits.train.labels, **supplied))\n'
        "    splits = subsample(hold_out(splits, held_out), used)\n",
        "        kept = len(subsample(hold_out(splits, held_out), used).train)\n"
        '        given = construct(node, "noise", all_labels=splits.train.labels, **supplied)[:kept]\n'
        "    splits = subsample(hold_out(splits, held_out), used)\n"
        '    splits = splits.relabelled(given) if "all_labels" in taken else splits\n',
        "data/datasets/test_cifar.py::test_human_labels_stay",
    ),
    "data: a part that the seed chooses": (
        "data/sets.py",
        'generator=generator(0, "part of the training set")',
        "",
        "data/test_image_sets.py::test_fewer_are",
    ),
    "evaluations: the last is left out": (
        "trainer.py",
        "evaluated = last or (",
        "evaluated = (",
        "training/test_loop.py::test_evaluations_may",
    ),
    "experiments: the top-5 error is not told": (
        "paper.py",
        'f"{first} / {top5}" if top5 else first',
        "first",
        "paper/test_experiments.py::test_the_paper_reports",
    ),
    "metrics: of equal logits none is first": (
        "metrics.py",
        "((logits == own) & lower)",
        "((logits == own) & (lower | ~lower))",
        "training/test_metrics.py::test_top_five",
    ),
    "metrics: a sixth class counts": (
        "metrics.py",
        "(before.sum(1) < 5)",
        "(before.sum(1) <= 5)",
        "training/test_metrics.py::test_top_five",
    ),
    "oracle 1: ascent downhill": (
        PERTURBATION,
        "(rho / norm).masked_fill(norm == 0, 0.0)",
        "(-rho / norm).masked_fill(norm == 0, 0.0)",
        "sam/test_sam.py::test_first_order",
    ),
    "oracle 1: half of rho": (
        PERTURBATION,
        "(rho / norm).masked_fill(norm == 0, 0.0)",
        "(rho / 2 / norm).masked_fill(norm == 0, 0.0)",
        "sam/test_sam.py::test_three_steps",
    ),
    "oracle 1: norm squared": (
        PERTURBATION,
        "(rho / norm).masked_fill(norm == 0, 0.0)",
        "(rho / norm**2).masked_fill(norm == 0, 0.0)",
        "sam/test_agreement.py::test_perturbation_of_a_network",
    ),
    "oracle 2: wrong conjugate": (
        PERTURBATION,
        "q = p / (p - 1)",
        "q = p",
        "sam/test_epsilon.py::test_closed_form_values",
    ),
    "oracle 2: sign lost": (
        PERTURBATION,
        "part.sign() * size.pow",
        "size.pow",
        "sam/test_epsilon.py::test_it_is_the_maximiser",
    ),
    "oracle 2: ties not shared": (PERTURBATION, "* tie / num_ties", "* tie", "sam/test_epsilon.py::test_equal_largest"),
    "oracle 2: no scaling first": (
        PERTURBATION,
        "unit = [grad / divisor for grad in grads]",
        "unit = grads",
        "sam/test_epsilon.py::test_float32_neither",
    ),
    "oracle 2: zero over zero": (
        PERTURBATION,
        "(rho / norm).masked_fill(norm == 0, 0.0)",
        "rho / norm",
        "sam/test_epsilon.py::test_zero_gradient",
    ),
    "oracle 2: inf hidden": (
        PERTURBATION,
        "rho + 0 * largest",
        "rho + 0 * largest.isnan()",
        "sam/test_epsilon.py::test_a_non_finite",
    ),
    "oracle 3: second order dropped": (
        SAM,
        "grad.add_(bend)",
        "grad",
        "sam/test_sam.py::test_second_order_term",
    ),
    "oracle 3: second order doubled": (
        SAM,
        "grad.add_(bend)",
        "grad.add_(bend, alpha=2)",
        "sam/test_agreement.py::test_gradient_equals_a_functional_twin",
    ),
    "oracle 5: gradient at w": (
        PERTURBATION,
        "torch.addcmul(weight, part, eps.scale, out=target)",
        "target.copy_(weight)",
        "sam/test_sam.py::test_linear_loss",
    ),
    "oracle 6: groups ignored": (SAM, "batch.split(self.group_size)", "[batch]", "sam/test_sam.py::test_least_squares"),
    "oracle 7: sum instead of mean": (
        SAM,
        "batch.weight * len(group) / len(batch) for",
        "1.0 for",
        "sam/test_sam.py::test_identical_groups",
    ),
    "oracle 7: groups weighted equally": (
        SAM,
        "batch.weight * len(group) / len(batch) for",
        "1 / len(groups) for",
        "sam/test_sam.py::test_groups_of_unequal",
    ),
    "oracle 7: chunks weighted equally": (
        OBJECTIVE,
        "share = len(chunk) / len(batch)",
        "share = 1 / len(self.chunks(batch))",
        "sam/test_sam.py::test_accumulation_shares",
    ),
    "oracle 8: further ascent ignored": (
        SAM,
        "range(self.ascent_steps - 1)",
        "range(0)",
        "sam/test_sam.py::test_further_ascent_steps",
    ),
    "oracle 8: no projection": (
        SAM,
        "(rho / norm).clamp(max=1.0)",
        "torch.ones_like(norm)",
        "sam/test_sam.py::test_further_ascent_steps",
    ),
    "oracle 9: decay only in one pass": (
        OBJECTIVE,
        "if self._weight_decay else loss",
        "if self._weight_decay and at_w else loss",
        "sam/test_sam.py::test_weight_decay",
    ),
    "oracle 9: decay not halved": (
        OBJECTIVE,
        "self._weight_decay / 2 *",
        "self._weight_decay *",
        f"{NUMPY}",
    ),
    "oracle 10: no clipping": (
        UPDATE,
        "clip_grads_with_norm_(params, self._grad_clip, norm)",
        "pass",
        "sam/test_sam.py::test_only_the_final",
    ),
    "oracle 12: weights stay swapped_parameters": (
        PERTURBATION,
        "            param.data = original\n",
        "            pass\n",
        "sam/test_sam.py::test_weights_are_restored",
    ),
    "oracle 12: restored only without an error": (
        PERTURBATION,
        "        yield\n    finally:\n        for param, original",
        "        yield\n    except ZeroDivisionError:\n        pass\n    else:\n        for param, original",
        "sam/test_sam.py::test_weights_are_restored_when",
    ),
    "oracle 13: first pass not looked at": (
        UPDATE,
        "nothing.masked_fill(~finite.all(), torch.nan)",
        "nothing",
        "sam/test_precision.py::test_a_first_gradient_that_the_second_pass",
    ),
    "oracle 13: statistics not put back": (
        SAM,
        "objective.statistics.restore(before, where=~finite.all())",
        "pass",
        "sam/test_precision.py::test_a_non_finite_gradient_in_any_pass",
    ),
    "oracle 13: gradient norm keeps the scale": (
        SAM,
        "grad_norm / scaler.scale(torch.ones_like(grad_norm))",
        "grad_norm",
        "sam/test_precision.py::test_the_perturbation_does_not_depend",
    ),
    "oracle 13: scale updated twice": (
        UPDATE,
        "        self._scaler.update()\n",
        "        self._scaler.update()\n        self._scaler.update()\n",
        "sam/test_precision.py::test_a_clean_step",
    ),
    "oracle 14: second pass counted": (
        OBJECTIVE,
        "with self.statistics.accumulate_statistics(len(chunk)) if at_w else self.statistics.frozen():",
        "with self.statistics.accumulate_statistics(len(chunk)) if at_w else nullcontext():",
        "sam/test_batch_statistics.py::test_one_update_per_step",
    ),
    "oracle 14: second pass uses running statistics": (
        BATCHNORM,
        "layer.track_running_stats = False",
        "layer.training = False",
        "sam/test_batch_statistics.py::test_both_passes_normalise",
    ),
    "oracle 14: every group counted": (
        BATCHNORM,
        "if (num_passes <= 1 and weight == 1) or not layers:",
        "if True:",
        "sam/test_batch_statistics.py::test_groups_and_micro_batches",
    ),
    "oracle 14: groups weighted equally": (
        BATCHNORM,
        "alpha=num_examples",
        "alpha=1",
        "sam/test_batch_statistics.py::test_groups_and_micro_batches",
    ),
    "oracle 14: passes begin where the last one ended": (
        BATCHNORM,
        "            self._mean.begin()",
        "            pass",
        "sam/test_batch_statistics.py::test_groups_and_micro_batches",
    ),
    "oracle 14: a layer used twice counts once with groups": (
        BATCHNORM,
        "return\n            self._mean",
        "return\n            for layer in layers:\n                layer.momentum = 1.0\n            self._mean",
        "sam/test_batch_statistics.py::test_a_layer_used_twice",
    ),
    "oracle 14: instance norm at w + eps counts": (
        BATCHNORM,
        "return isinstance(layer, _InstanceNorm)",
        "return False",
        "sam/test_batch_statistics.py::test_instance_norm",
    ),
    "spectral: iterated at w + eps": (
        "spectral.py",
        "        self._stop()\n        try:",
        "        try:",
        "sam/test_spectral_norm.py::test_a_frozen",
    ),
    "spectral: every group iterates": (
        "spectral.py",
        "if self._once:",
        "if False:",
        "sam/test_spectral_norm.py::test_a_step_iterates",
    ),
    "spectral: a step that is not finite moves the vectors": (
        BATCHNORM,
        ", *self._power.vectors()]",
        "]",
        "sam/test_spectral_norm.py::test_a_step_that_is_not",
    ),
    "oracle 15: second pass at rho 0": (
        SAM,
        "        if _is_zero(rho):\n            at_w",
        "        if False:\n            at_w",
        "sam/test_step.py::test_rho_zero",
    ),
    "oracle 15: other masks in the second pass": (
        SAM,
        "rng.restore(self.objective.device)",
        "pass",
        "sam/test_step.py::test_both_passes_see",
    ),
    "oracle 18: cosine over twice the steps": (
        SCHEDULES,
        "math.cos(math.pi * done)",
        "math.cos(math.pi * done / 2)",
        "training/test_schedules.py",
    ),
    "direction: the gradient's length": (
        PERTURBATION,
        "    scale = rho / norm\n    return Perturbation(grads, scale, scale * norm, grad_norm)",
        "    scale = rho / grad_norm\n    return Perturbation(grads, scale, scale * norm, grad_norm)",
        "sam/test_random_direction.py::test_its_length",
    ),
    "direction: a cube, not a ball": (
        PERTURBATION,
        "torch.randn(grad.shape, generator=draws, dtype=grad.dtype, device=grad.device)",
        "2 * torch.rand(grad.shape, generator=draws, dtype=grad.dtype, device=grad.device) - 1",
        "sam/test_random_direction.py::test_coordinates",
    ),
    "direction: as the weights lie in memory": (
        PERTURBATION,
        "grad.copy_(torch.randn(grad.shape, generator=draws, dtype=grad.dtype, device=grad.device))",
        "grad.normal_(generator=draws)",
        "sam/test_random_direction.py::test_neither",
    ),
    "direction: the gradient has a share": (
        PERTURBATION,
        "grad.copy_(torch.randn(",
        "grad.add_(torch.randn(",
        "sam/test_random_direction.py::test_neither",
    ),
    "direction: the same in every step": (
        SAM,
        '"direction", number, device',
        '"direction", 0, device',
        "sam/test_random_direction.py::test_directions_of_other",
    ),
    "direction: the same for every seed": (
        SAM,
        "generator(self.direction_seed, ",
        "generator(0, ",
        "sam/test_random_direction.py::test_directions_of_other",
    ),
    "direction: steps are counted from where an epoch begins": (
        "trainer.py",
        "rho, progress.step)",
        "rho, progress.batch)",
        "sam/test_random_direction.py::test_the_trainer",
    ),
    "direction: a recording repeats it": (
        "capture.py",
        "    if step.direction_seed is not None:",
        "    if False:",
        "sam/test_random_direction.py::test_a_recording",
    ),
    "no waiting: a number is read": (
        PERTURBATION,
        "    norm = norm_of(grads, shards)\n",
        "    norm = norm_of(grads, shards)\n    norm.item()\n",
        "sam/test_step.py::test_the_step_reads_no_number",
    ),
    "not finite: the update is made all the same": (
        UPDATE,
        "(~finite.all()).to(torch.float32)",
        "finite.all().to(torch.float32) * 0",
        "sam/test_step.py::test_a_step_that_is_not_finite",
    ),
    "not finite: the momentum starts as it happens to be": (
        UPDATE,
        "            _start_momentum(optimizer)",
        "            pass",
        "sam/test_step.py::test_a_step_that_is_not_finite",
    ),
    "not finite: the final gradient is not looked at": (
        UPDATE,
        "finite = torch.cat([finite, norm.isfinite()[None]])\n        if self._fused",
        "finite = torch.cat([finite, finite[:1]])\n        if self._fused",
        "sam/test_step.py::test_what_is_not_finite",
    ),
    "shake: the ascent is shaken": (
        OBJECTIVE,
        "with true_gradient(self._shaken):\n                evaluation",
        "with nullcontext():\n                evaluation",
        "models/test_models_shake.py::test_the_ascent_has",
    ),
    "shake: the descent is not shaken": (
        SHAKE,
        "        if self.true_gradient:\n",
        "        if True:\n",
        "models/test_models_shake.py::test_a_plain_step",
    ),
    "shake: the true gradient stays on": (
        SHAKE,
        "            layer.true_gradient = False",
        "            pass",
        "models/test_models_shake.py::test_the_true_gradient_ends",
    ),
    "shake: the second-order term of a shaken gradient": (
        OBJECTIVE,
        "with true_gradient(self._shaken):\n                for",
        "with nullcontext():\n                for",
        "models/test_models_shake.py::test_the_second_order",
    ),
    "shake: what is dropped is scaled up again": (
        SHAKE,
        "return branch * self.keep",
        "return branch",
        "models/test_models_shake.py::test_shakedrop_keeps",
    ),
    "weights: a head half loaded": (
        PRETRAINED,
        "if fresh and key.startswith(head)",
        "if key in fresh",
        "models/test_models_finetune.py::test_a_head_is_taken",
    ),
    "weights: superfluous ones are passed over": (
        PRETRAINED,
        "for key in given if key not in wanted",
        "for key in ()",
        "models/test_models_finetune.py::test_every_key",
    ),
    "weights: the head has the body's rate": (
        NETWORK,
        ', "lr": settings["head_lr"]}',
        "}",
        "models/test_models_finetune.py::test_a_step_of_the_head",
    ),
    "weights: statistics are not frozen": (
        BATCHNORM,
        "layer.train = MethodType(_stay, layer)",
        "layer.train()",
        "models/test_models_finetune.py::test_frozen_statistics",
    ),
    "ranks: uneven ones count equally": (
        "distributed.py",
        "return num_own * self.count / num_all",
        "return 1.0",
        "distributed/test_distributed.py::test_parts_are",
    ),
    "ranks: statistics without their weight": (
        BATCHNORM,
        "self._weight / self._num_examples)",
        "1 / self._num_examples)",
        "distributed/test_distributed.py::test_mean_of_ranks",
    ),
    "ranks: each evaluates all batches": (
        "data/loader.py",
        "batches[self.ranks.rank :: self.ranks.world_size]",
        "batches",
        "distributed/test_distributed.py::test_ranks_evaluate",
    ),
    "ranks: norms count once a rank": (
        "metrics.py",
        "stats.grad_norm * share",
        "stats.grad_norm",
        "distributed/test_distributed.py::test_sums_of_ranks",
    ),
    "ranks: the last to fail is told": (
        "distributed.py",
        'self.store.add("errors", 1) == 1',
        'self.store.add("errors", 1) == 0',
        "distributed/test_distributed.py::test_the_first_error",
    ),
    "mixing: the shares swapped": (
        MIXING,
        "torch.lerp(others, images_NCHW, share)",
        "torch.lerp(images_NCHW, others, share)",
        "data/augment/test_mixing.py::test_mixup_is_exact",
    ),
    "mixing: labels by lambda, not by the area that is left": (
        MIXING,
        "share = 1 - (box.bottom - box.top) * (box.right - box.left) / (height * width)",
        "pass",
        "data/augment/test_mixing.py::test_cutmix_is_exact",
    ),
    "mixing: batches counted from where a run resumes": (
        "data/loader.py",
        "in enumerate(together, start):",
        "in enumerate(together, 0):",
        "data/augment/test_mixing.py::test_a_loader_mixes",
    ),
    "mixing: the loss of the labels": (
        "trainer.py",
        "Batch(examples.images, examples.targets, weight)",
        "Batch(examples.images, examples.labels, weight)",
        "data/augment/test_mixing.py::test_the_trainer_learns",
    ),
    "policy: the same in every epoch": (
        POLICY,
        '"policy", epoch, index',
        '"policy", index',
        "data/augment/test_policy.py::test_an_image_does_not_depend",
    ),
    "policy: the generator is left where it is": (
        POLICY,
        "with torch.random.fork_rng(devices=[]):",
        "if True:",
        "data/augment/test_policy.py::test_an_image_does_not_depend",
    ),
    "erasing: what does not fit is not drawn again": (
        AUGMENT,
        "first = fits.long().argmax(1, keepdim=True)",
        "first = torch.zeros(len(fits), 1, dtype=torch.int64)",
        "data/augment/test_augmentation.py::test_erase_equals",
    ),
    "noise: every example at the mean rate": (
        NOISE,
        "change < rates",
        "change < rate",
        "data/test_noise.py::test_instance_noise_changes",
    ),
    "svhn: ten stays ten": (
        "data/svhn.py",
        "labels.astype(np.int64) % 10",
        "labels.astype(np.int64) - 1",
        "data/datasets/test_svhn.py::test_images_and_digits",
    ),
    "memory: w + eps beside the gradient": (
        SAM,
        "moved = perturbed_parameters(self.objective.params, eps, in_place=True)\n        del eps",
        "moved = perturbed_parameters(self.objective.params, eps, in_place=False)\n        kept = eps",
        "sam/test_step.py::test_at_most_one_extra",
    ),
    "sweep: a refused cell is no failure": (
        "sweep.py",
        '"failed", "refused", "not run"',
        '"failed", "not run"',
        "sweeps/test_sweep.py::test_the_exit_code",
    ),
    "sweep: cells of other calls too": (
        "sweep.py",
        'if status.get("call") == this_call():',
        'if status.get("call"):',
        "sweeps/test_sweep.py::test_cells_are_those",
    ),
    "sweep: a stop is for ever": (
        "sweep.py",
        'flag.get("call") == this_call()',
        'flag.get("call")',
        "sweeps/test_sweep.py::test_a_stop_is_for_one_call",
    ),
    "sweep: nobody is told of a signal": (
        "sweep.py",
        'status.get("pid") != os.getpid()',
        'status.get("pid") == os.getpid()',
        "sweeps/test_sweep.py::test_a_signal_goes_to_the_cells",
    ),
    "sweep: GPUs in blocks": (
        "hardware.py",
        "int(cell) % num_gpus",
        "int(cell) // num_gpus",
        "sweeps/test_sweep.py::test_cells_that_run_at_once",
    ),
    "sweep: the dead are running": (
        "run_folder.py",
        "        return None\n    return False\n",
        "        return None\n    return True\n",
        "sweeps/test_sweep.py::test_a_run_that_was_killed",
    ),
    "sweep: a line of a batch script": (
        "hydra_guard.py",
        r'"[\x00-\x1f\x7f]"',
        r'"[\x00-\x08\x7f]"',
        "sweeps/test_sweep.py::test_an_engine_runs_no_program",
    ),
    "sweep: what is computed can be a call": (
        "hydra_guard.py",
        "text not in COMPUTED",
        "False",
        "sweeps/test_sweep.py::test_ray_serves",
    ),
    "sweep: Ray of somebody else": (
        "hydra_guard.py",
        '("local",)',
        '("local", None, "auto")',
        "sweeps/test_sweep.py::test_ray_serves",
    ),
    "sweep: Ray waits for cores that are not there": (
        "engines.py",
        "> (there.get(key) or 0)",
        "< 0",
        "sweeps/test_sweep.py::test_a_cell_that_ray",
    ),
    "sweep: Ray keeps SIGTERM": (
        "cli.py",
        "                ended.listen()",
        "                pass",
        "sweeps/test_sweep.py::test_signals_are_taken_back",
    ),
    "sweep: SIGUSR2 in any case": (
        "stopping.py",
        "number != signal.SIGUSR2 or callable(signal.getsignal(number))",
        "number",
        "sweeps/test_sweep.py::test_sigusr2",
    ),
}

SLOW = {"sweep: nobody is told of a signal": pytest.mark.slow}  # its test waits in vain


def run_in_child(folder, tests):
    """Run tests with the package in `folder`, in a fork, which has torch loaded already; pytest's exit code."""
    gc.freeze()  # pages that nobody looks at are not copied
    child = os.fork()
    if child == 0:
        gc.disable()
        code = 99
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            for name in [name for name in sys.modules if name.startswith(("sam_runner", "tests", "test_", "conftest"))]:
                del sys.modules[name]
            ConfigLoaderImpl.load_configuration = inspect.unwrap(ConfigLoaderImpl.load_configuration)  # by its guard
            sys.path.insert(0, str(folder))
            import sam_runner as mutated

            if Path(mutated.__file__).is_relative_to(folder):
                names = ("cacheprovider", "xdist", "timeout", "randomly", "unraisableexception")
                plugins = ["--assert=plain", *(word for name in names for word in ("-p", f"no:{name}"))]
                target, _, name = tests.partition("::")
                chosen = ["-k", name] if name else []
                options = ["-x", "-q", "-o", "addopts=", "--rootdir", str(ROOT), *plugins, *chosen]
                code = int(pytest.main([*options, str(ROOT / "tests" / target)]))
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def copy_of_package(folder):
    shutil.copytree(Path(sam_runner.__file__).parent, folder / "sam_runner")
    shutil.copytree(ROOT / "conf", folder / "conf")
    return folder / "sam_runner"


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW[name]) if name in SLOW else name for name in MUTANTS])
def test_the_mutant_is_killed(name, tmp_path):
    file, old, new, tests = MUTANTS[name]
    path = copy_of_package(tmp_path) / file
    source = path.read_text()
    assert old in source, f"{file} no longer holds {old!r}: bring the mutant up to date"
    path.write_text(source.replace(old, new))
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):  # those of the other files are good
        compiled.unlink()
    assert run_in_child(tmp_path, tests) == 1  # pytest's code for failed tests; 2 to 5 would be errors of another kind


@pytest.mark.parametrize("file", sorted({tests.split("::")[0] for _, _, _, tests in MUTANTS.values()}))
def test_the_unchanged_package_passes_in_the_same_way(file, tmp_path):
    copy_of_package(tmp_path)
    names = {tests.partition("::")[2] for _, _, _, tests in MUTANTS.values() if tests.startswith(file)}
    assert run_in_child(tmp_path, file if "" in names else f"{file}::{' or '.join(sorted(names))}") == 0
