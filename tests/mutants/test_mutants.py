"""The oracles have teeth: each mutant of the mathematics breaks one rule, and the tests of that rule must fail on it.

`mutation` explains patterns. scripts/checks/random_mutants.py makes mutants at random.
"""

import ast

import pytest

from tests.mutants.child import run_tests
from tests.mutants.mutation import PlaceError, find_function, mutated

# module: (rule, function, pattern, replacement, tests that must fail as file::-k expression, number of the place)
# fmt: off
MUTANTS = {
    "sam.perturbation": [
        ("eps: downhill", "divide_radius", "A / norm", "-A / norm", "sam/test_sam.py::first_order"),
        ("eps: half of rho", "divide_radius", "A / norm", "A / 2 / norm", "sam/test_sam.py::three_steps"),
        ("eps: norm squared", "divide_radius", "A / norm", "A / norm**2",
         "sam/test_agreement.py::perturbation_of_a_network"),
        ("eps: zero over zero", "divide_radius", "A.masked_fill(B == 0, 0.0)", "A",
         "sam/test_epsilon.py::zero_gradient"),
        ("eps: wrong conjugate", "epsilon", "A / (A - 1)", "A", "sam/test_epsilon.py::closed_form_values"),
        ("eps: sign lost", "epsilon", "A.sign() * B.pow(C) * D", "B.pow(C) * D", "sam/test_epsilon.py::maximiser"),
        ("eps: exponent of the norm", "epsilon", "A.pow(1 / B)", "A.pow(1 / 2)",
         "sam/test_epsilon.py::closed_form_values"),
        ("eps: ties are not shared", "epsilon", "A * tie / num_ties", "A * tie", "sam/test_epsilon.py::equal_largest"),
        ("eps: not divided by the largest first", "epsilon", "grad / A", "grad",
         "sam/test_epsilon.py::float32_neither"),
        ("eps: an infinity is hidden", "epsilon", "rho + 0 * A", "rho + 0 * A.isnan()",
         "sam/test_epsilon.py::non_finite"),
        ("eps: the norm is accumulated in float32", "norm_of", "A.double().sum()", "A.half().sum()",
         "sam/test_epsilon.py::norm_over"),
        ("w + eps: the gradient at w", "perturbed_parameters", "torch.addcmul(A, B, C, out=D)", "D.copy_(A)",
         "sam/test_sam.py::linear_loss"),
        ("step: a number is read off the device", "divide_radius", "norm == 0", "norm.item() == 0",
         "sam/test_step.py::reads_no_number"),
    ],
    "sam.method": [
        ("w + eps: beside the gradient", "Method.accumulate", "A.at(B)", "A.at(B, keep=True)",
         "sam/test_step.py::most_one_extra"),
        ("esam: the generator ends elsewhere", "Group.backward", "A.restore(...)", "pass",
         "sam/test_awkward_networks.py::leave_a_network"),
        ("step: other masks in the second pass", "Group._begin_pass", "A.restore(...)", "pass",
         "sam/test_step.py::both_passes_see"),
        ("network: a generator of a module is not replayed", "Group.gradient", "RngState.capture(A, B)",
         "RngState.capture(A, B[:0])", "sam/test_awkward_networks.py::every_part_alone"),
        ("method: state of a non-finite step", "Method.commit", "A.all()", "~A.all() | A.all()",
         "sam/test_method.py::not_finite_leaves_the_state"),
        ("method: the gradient at w is not combined", "Group._sum_gradient", "A.extend(B)", "pass",
         "sam/test_method.py::uses_all_hooks"),
    ],
    "sam.parameter_swap": [
        ("w: stays swapped", "swapped_parameters", "param.data = original", "pass",
         "sam/test_sam.py::weights_are_restored"),
        ("w: restored only without an error", "swapped_parameters", "try:\n A\nfinally:\n B", "A\nB",
         "sam/test_sam.py::restored_when_the_second"),
    ],
    "sam.step": [
        ("step: the true gradient is descended", "SamStep.__init__", "A.descends_along_g and B", "False",
         "models/test_models_shake.py::descends_along"),
        ("step: a second pass at rho 0", "SamStep.choose_method", "is_zero(A)", "False",
         "sam/test_method.py::rho_zero_is_the_base"),
        ("step: groups are ignored", "SamStep._take", "A.split(B, C)", "A.split(B, None)",
         "sam/test_sam.py::least_squares"),
        ("step: the sum over groups instead of the mean", "SamStep._take", "A * B / C", "A",
         "sam/test_sam.py::identical_groups"),
        ("step: groups are weighted equally", "SamStep._take", "A * B / C", "A / len(batches)",
         "sam/test_sam.py::groups_of_unequal"),
        ("step: norms are summed over groups", "_mean_over_groups", "A * B", "A",
         "sam/test_random_direction.py::neither_gradient"),
        ("step: the norm keeps the loss scale", "SamStep._take", "A / B.loss_scale", "A",
         "sam/test_precision.py::perturbation_does_not_depend"),
        ("step: what is added after the step is not checked", "SamStep._take", "self._optimizer_step(A, B)",
         "self._optimizer_step(A)", "sam/test_family.py::infinite_gradient"),
        ("step: a part of the final gradient is lost", "SamStep._combine", "param.grad = grad", "pass",
         "sam/test_family.py::only_the_pass_at_w"),
        ("step: statistics of a non-finite step stay", "SamStep._take", "A.restore(...)", "pass",
         "sam/test_precision.py::any_pass"),
    ],
    "sam.network.second_derivatives": [
        ("second order: a term is left out unnoticed", "require_second_derivatives", "nodes += A", "nodes = nodes",
         "sam/test_awkward_networks.py::refused_by_its_name"),
    ],
    "sam.methods.second_order": [
        ("second order: dropped", "SecondOrder.accumulate", "A.add_(B)", "A", "sam/test_sam.py::second_order_term"),
        ("second order: doubled", "SecondOrder.accumulate", "A.add_(B)", "A.add_(B, alpha=2)",
         "sam/test_agreement.py::functional_twin"),
    ],
    "sam.methods.asam": [
        ("asam: T once", "Asam.perturb", "self._multiply(A, B)", "pass", "sam/test_family.py::numpy", 1),
        ("asam: without eta", "Asam._multiply", "A.add_(B)", "A", "sam/test_family.py::numpy"),
        ("asam: T of biases", "Asam.prepare", "'weight' in A", "True", "sam/test_family.py::numpy"),
        ("asam: not the length of T g", "Asam.perturb", "divide_radius(A, B)", "divide_radius(A, grad_norm)",
         "sam/test_family.py::length_rho"),
    ],
    "sam.methods.fisher_sam": [
        ("fisher_sam: not inverted", "FisherSam.perturb", "A / B.to(C)", "A * B.to(C)", "sam/test_family.py::numpy"),
        ("fisher_sam: the Euclidean length", "FisherSam.perturb", "torch.sqrt(A)", "context.norm(direction)",
         "sam/test_family.py::length_rho"),
        ("fisher_sam: depends on the loss scale", "FisherSam.perturb", "A / B", "A",
         "sam/test_family.py::loss_scale", 0),
    ],
    "sam.methods.friendly_sam": [
        ("friendly_sam: the mean is added", "FriendlySam.perturb", "A.sub_(B)", "A.add_(B)",
         "sam/test_family.py::numpy"),
        ("friendly_sam: the mean is not updated", "FriendlySam.combine", "A + B", "A", "sam/test_family.py::numpy"),
        ("friendly_sam: the state has the loss scale", "FriendlySam.combine", "A / B", "A",
         "sam/test_family.py::loss_scale"),
    ],
    "sam.methods.sam_on": [
        ("sam_on: the complement", "SamOn._is_perturbed", "A == B", "A != B", "sam/test_family.py::sam_on_is", 0),
        ("sam_on: all parameters", "SamOn.perturb", "A.zero_()", "pass", "sam/test_family.py::sam_on_is"),
        ("sam_on: torch's classes only", "_normalising_parameters", "A not in B", "True",
         "sam/test_family.py::sam_on_finds"),
    ],
    "sam.methods.layerwise_sam": [
        ("layerwise_sam: weights have no effect", "LayerwiseSam.perturb", "A * B", "A", "sam/test_family.py::numpy"),
        ("layerwise_sam: the norm of all tensors", "_norms", "A.to(B)",
         "context.norm(tensors)", "sam/test_family.py::numpy"),
    ],
    "sam.methods.momentum_sam": [
        ("momentum_sam: uphill", "MomentumSam.accumulate", "-A.scale", "A.scale",
         "sam/test_family.py::momentum_sam_equals"),
        ("momentum_sam: at w", "MomentumSam.accumulate", "with A: B", "B", "sam/test_family.py::momentum_sam_equals"),
    ],
    "sam.methods.esam": [
        ("esam: the mean of eps is smaller", "Esam.perturb", "A.div_(B)", "A", "sam/test_family.py::esam_is_sams"),
        ("esam: the examples whose loss falls", "Esam._choose", "A - B", "B - A", "sam/test_family.py::esam_equals"),
        ("esam: the same weights in every step", "Esam.perturb", "A.number", "0", "sam/test_family.py::esam_equals", 1),
        ("esam: a rounded cost", "Esam.cost", "1 + A + B", "round(1 + A + B)", "sweeps/test_jobs.py::of_its_method"),
        ("esam: all examples", "Esam.accumulate", "self._choose(...)", "None", "sam/test_family.py::esam_equals"),
    ],
    "sam.methods.gsam": [
        ("gsam: the part of g_eps", "Gsam.combine", "divide_radius(A, B)",
         "divide_radius(A, context.dot(first, first))",
         "sam/test_family.py::numpy"),
        ("gsam: the gap is maximised", "Gsam.combine", "alpha=A", "alpha=-A", "sam/test_family.py::gsam_equals"),
        ("gsam: alpha has no zero", "Gsam.combine", "1 + A", "1.5 + A", "sam/test_family.py::identities"),
        ("gsam: a constant radius", "Gsam.radius", "A * fraction", "A", "sam/test_family.py::numpy"),
        ("gsam: a second pass where the other method has none", "Gsam.radius", "is_zero(A)", "False",
         "sam/test_family.py::gsam_around_interval"),
    ],
    "sam.methods.gradient_norm": [
        ("gradient_norm: the weights exchanged", "GradientNorm.combine", "alpha=1 - A", "alpha=A",
         "sam/test_family.py::identities"),
        ("gradient_norm: g_eps with weight 1", "GradientNorm.combine", "A.mul_(B)", "A", "sam/test_family.py::numpy"),
    ],
    "sam.methods.wsam": [
        ("wsam: gamma", "Wsam.__init__", "A / (1 - A)", "A", "sam/test_family.py::identities"),
        ("wsam: the decoupled sharpness is lost", "Wsam.commit", "A.sub_(B)", "pass", "sam/test_family.py::numpy"),
        ("wsam: without the rate", "Wsam.commit", "A * B[C]", "A", "sam/test_family.py::wsam_equals"),
        ("wsam: a step that is skipped moves the weights", "Wsam.commit", "A.masked_fill_(B, 0.0)", "A",
         "sam/test_family.py::skipped_changes_nothing"),
        ("wsam: the sharpness has the loss scale", "Wsam.combine", "A / B", "A", "sam/test_family.py::loss_scale"),
    ],
    "sam.methods.looksam": [
        ("looksam: the whole of g_eps is kept", "LookSam.combine", "A - B * ratio", "A", "sam/test_family.py::numpy"),
        ("looksam: not of length 1", "LookSam.combine", "torch._foreach_mul_(A, B)", "pass",
         "sam/test_family.py::numpy"),
        ("looksam: not added", "LookSam.combine", "self.alpha * A", "0 * A", "sam/test_family.py::numpy"),
    ],
    "sam.methods.interval": [
        ("interval: SAM in every step", "Interval.is_chosen", "A % B == 0", "True", "sam/test_family.py::numpy"),
        ("interval: the other steps", "Interval.is_chosen", "A % B == 0", "A % B == 1",
         "sam/test_family.py::identities"),
    ],
    "sam.methods.late": [
        ("late: one step less", "Late.is_chosen", "A >= B", "A > B", "sam/test_family.py::identities"),
        ("late: first and last", "Late.is_chosen", "A == 'first'", "A != 'first'", "sam/test_family.py::numpy"),
    ],
    "sam.methods.random_sam": [
        ("random_sam: the other steps", "RandomSam.is_chosen", "A < B", "A >= B", "sam/test_family.py::identities"),
        ("random_sam: the same draw in all steps", "RandomSam.is_chosen", "make_generator(A, B, C)",
         "make_generator(A, B)", "sam/test_family.py::draws_with_its_probability"),
        ("random_sam: a constant probability", "RandomSam.is_chosen", "A + B * C", "A",
         "sam/test_family.py::draws_with_its_probability"),
    ],
    "sam.methods.ae_sam": [
        ("ae_sam: SAM where the gradient is small", "AeSam._decide", "A >= B", "A < B",
         "sam/test_family.py::identities"),
        ("ae_sam: the mean alone", "AeSam._decide", "A + B * C.sqrt()", "A", "sam/test_family.py::ae_sam_equals"),
        ("ae_sam: the moments have the loss scale", "AeSam._decide", "A / B.loss_scale", "A",
         "sam/test_family.py::loss_scale"),
        ("ae_sam: the moments are forgotten", "AeSam._decide", "A * mean", "0 * mean",
         "sam/test_family.py::ae_sam_equals"),
    ],
    "sam.methods.around": [
        ("around: a plain step is combined", "Around.combine", "A and not B", "A",
         "sam/test_family.py::other_steps_are_plain", 1),
        ("around: every step is chosen", "SomeSteps.radius", "A if B else C", "A", "sam/test_family.py::identities"),
    ],
    "sam.objective": [
        ("cost: an evaluation is free", "Objective.evaluate", "A.forward += B", "pass",
         "sam/test_family.py::those_that_it_makes"),
        ("cost: a gradient is half", "Objective._make_passes", "A.backward += B", "pass",
         "sam/test_family.py::those_that_it_makes"),
        ("network: parameters of the loss are left out", "Objective.train_parameters", "outside = A", "outside = []",
         "sam/test_own_networks.py::weights_of_a_loss"),
        ("network: what a backward pass recomputes stays", "Objective._make_passes",
         "with average, statistics.recompute_from(A): B", "with average: B",
         "sam/test_awkward_networks.py::every_part_alone"),
        ("second order: shaken", "Objective.gradient",
         "with true_gradient(A), sdpa_kernel(D), C: B", "with sdpa_kernel(D), C: B",
         "models/test_models_shake.py::second_order"),
        ("objective: micro-batches are weighted equally", "Objective._make_passes", "len(A) / B", "1 / len(chunks)",
         "sam/test_sam.py::accumulation_shares"),
        ("objective: decay in one pass", "Objective._make_passes", "A if self._weight_decay else B",
         "A if update_statistics else B", "sam/test_sam.py::weight_decay_in_the_loss"),
        ("objective: decay is not halved", "Objective._penalty", "A / 2", "A",
         "sam/test_agreement.py::training_equals_numpy"),
        ("objective: the ascent is shaken", "Objective.gradient",
         "with true_gradient(A), self._check_constants(): B", "with self._check_constants(): B",
         "models/test_models_shake.py::ascent_uses"),
        ("statistics: the second pass counts", "Objective._make_passes",
         "A if update_statistics else B.discard_updates()", "A", "sam/test_batch_statistics.py::one_update_per_step"),
    ],
    "sam.methods.k_step": [
        ("k steps: one", "KStep.perturb", "range(A - 1)", "range(0)", "sam/test_sam.py::further_ascent_steps"),
        ("k steps: no projection", "KStep._project", "A.clamp(max=1.0)", "torch.ones_like(A)",
         "sam/test_sam.py::further_ascent_steps"),
        ("k steps: the norm of the last gradient is reported", "KStep.perturb", "grad_norm=A.grad_norm",
         "grad_norm=eps.grad_norm", "sam/test_sam.py::further_ascent_steps"),
    ],
    "sam.methods.random_direction": [
        ("random direction: the gradient's length", "RandomDirection.perturb", "A / norm", "A / grad_norm",
         "sam/test_random_direction.py::its_length"),
        ("random direction: a cube, not a ball", "RandomDirection.perturb", "A.copy_(B)",
         "A.uniform_(-1, 1, generator=draws)", "sam/test_random_direction.py::coordinates"),
        ("random direction: by the weights' layout", "RandomDirection.perturb", "A.copy_(B)",
         "A.normal_(generator=draws)", "sam/test_random_direction.py::neither_gradient"),
        ("random direction: the gradient has a share", "RandomDirection.perturb", "A.copy_(B)", "A.add_(B)",
         "sam/test_random_direction.py::neither_gradient"),
        ("random direction: the same in every step", "RandomDirection.perturb", "A.number", "0",
         "sam/test_random_direction.py::other_seeds_and_steps", 1),
        ("random direction: the same for every seed", "RandomDirection.perturb", "self.seed", "0",
         "sam/test_random_direction.py::other_seeds_and_steps"),
    ],
    "sam.cuda_graph": [
        ("random direction: a recording repeats it", "capture_blocker", "step.method.capture_blocker", "''",
         "sam/test_random_direction.py::recording", 0),
    ],
    "sam.optimizer_step": [
        ("update: not clipped", "OptimizerStep._clip", "clip_grads_with_norm_(...)", "pass",
         "sam/test_sam.py::only_the_final"),
        ("update: the first pass is not checked", "OptimizerStep._step_with_scaler", "A.masked_fill(...)", "A",
         "sam/test_precision.py::second_pass_does_not_show"),
        ("update: the scale grows twice", "OptimizerStep._step_with_scaler", "A.update()", "A.update(), A.update()",
         "sam/test_precision.py::clean_step"),
        ("update: made although not finite", "OptimizerStep.__call__", "(~A.all()).to(B)", "A.all().to(B) * 0",
         "sam/test_step.py::not_finite_leaves_weights"),
        ("update: momentum starts uninitialised", "OptimizerStep.prepare", "_start_momentum(A)", "pass",
         "sam/test_step.py::not_finite_leaves_weights"),
        ("update: the final gradient is not checked", "OptimizerStep.__call__", "B.isfinite() & C", "C",
         "sam/test_step.py::what_is_not_finite"),
    ],
    "sam.batch_statistics": [
        ("statistics: the second pass uses the running ones", "RunningStatistics.discard_updates", "yield",
         "[layer.eval() for layer in self._layers]\nyield", "sam/test_batch_statistics.py::both_passes_normalise"),
        ("network: a later pass starts from the buffers of the first one's end", "RunningStatistics.discard_updates",
         "A.copy_group_start()", "A.copy_start()", "sam/test_awkward_networks.py::every_part_alone"),
        ("statistics: every group counts", "RunningStatistics.single_statistics_update", "A <= 1 and B", "True",
         "sam/test_batch_statistics.py::groups_and_micro"),
        ("statistics: groups are weighted equally", "_Mean.add", "alpha=A", "alpha=1",
         "sam/test_batch_statistics.py::groups_and_micro"),
        ("statistics: a pass starts where the last one ended", "RunningStatistics.accumulate_statistics", "A.begin()",
         "pass", "sam/test_batch_statistics.py::groups_and_micro"),
        ("statistics: every group counts as a batch", "_Mean.begin", "_copy(self._counts, A)", "pass",
         "sam/test_batch_statistics.py::groups_and_micro"),
        ("statistics: an exception does not restore them", "_Mean.restore", "_copy(self._buffers, A)", "pass",
         "sam/test_batch_statistics.py::raises"),
        ("statistics: of ranks without their weight", "_Mean.write", "self._weight / A", "1 / A",
         "distributed/test_distributed.py::mean_of_ranks"),
        ("spectral norm: a non-finite step moves the vectors", "RunningStatistics.snapshot", "self._modules",
         "self._layers",
         "sam/test_spectral_norm.py::not_finite"),
    ],
    "sam.network.gradient_memory": [
        ("network: w + eps is written over memory that is used elsewhere", "own_gradients", "_is_shared(A)", "False",
         "sam/test_awkward_networks.py::every_part_alone"),
    ],
    "sam.network.constants": [
        ("network: a parameter that is state is written twice", "constants_stay", "torch.equal(A, B)", "True",
         "sam/test_own_networks.py::parameter_that_is_state"),
    ],
    "sam.network.trained_parameters": [
        ("network: gaps of a parameter are its memory", "_have_common_bytes", "A.fill_(B)", "is_used.fill_(B)",
         "sam/test_awkward_networks.py::every_part_alone and columns"),
    ],
    "sam.network.buffers": [
        ("network: buffers that share memory are separated", "_copy_tensors", "A > 1", "A > 2",
         "sam/test_awkward_networks.py::every_part_alone and shared"),
        ("statistics: a later pass leaves its writes", "swapped_buffers", "try:\n A\nfinally:\n B", "A",
         "sam/test_batch_statistics.py::groups_and_micro"),
    ],
    "sam.network.joint_passes": [
        ("joint: every network has the gradient of the first", "_backward", "grad[A]", "grad[0]",
         "sam/test_joint_passes.py::as_alone"),
        ("joint: every network has the buffers of the first", "_write_buffers", "tensor[A]", "tensor[0]",
         "sam/test_joint_passes.py::as_alone"),
        ("joint: runs share their random numbers", "JointPasses.meet", "A.restore(B)", "None",
         "sam/test_joint_passes.py::random_numbers_of_its_own"),
        ("joint: networks of any input make one pass", "_Forward.key", "self.inputs.shape", "()",
         "sam/test_joint_passes.py::ends_earlier"),
    ],
    "sam.spectral_norm": [
        ("spectral norm: iterates at w + eps", "PowerIterations.pause", "A._stop()", "pass",
         "sam/test_spectral_norm.py::frozen_pass"),
        ("spectral norm: every group iterates", "PowerIterations.end_pass", "self._is_single", "False",
         "sam/test_spectral_norm.py::step_iterates"),
    ],
    "models.layers.shake": [
        ("shake: the descent is not shaken", "ShakeLayer._scale", "self.true_gradient", "True",
         "models/test_models_shake.py::plain_step"),
        ("shake: a dropped branch is scaled up", "ShakeDrop.forward", "A * self.keep", "A",
         "models/test_models_shake.py::shakedrop_keeps"),
    ],
    "sam.random_branches": [
        ("shake: the true gradient stays on", "true_gradient", "layer.true_gradient = False", "pass",
         "models/test_models_shake.py::error_ends"),
    ],
    "distributed.context": [
        ("ranks: uneven ones count equally", "DistributedContext.batch_weight", "A * B / C", "1.0",
         "distributed/test_distributed.py::parts_are"),
        ("ranks: another error than the first is named", "DistributedContext.attribute_error", "A == 1", "A == 0",
         "distributed/test_distributed.py::first_error", 1),
    ],
    "distributed.gradient_average": [
        ("ranks: a gradient that no rank has is zero", "_Bucket.receive", "used[A] > 0", "True",
         "distributed/test_ranks.py::different_parameters and no"),
        ("ranks: a rank without a gradient gets none", "_Bucket.receive", "used[A] > 0", "False",
         "distributed/test_ranks.py::different_parameters"),
        ("ranks: the sum of the gradients", "_Bucket.send", "self.flat.div_(A)", "pass",
         "distributed/test_ranks.py::different_parameters"),
        ("ranks: a gradient that a rank lacks is that of the step before", "_Bucket.send", "part.zero_()", "pass",
         "distributed/test_ranks.py::different_parameters"),
        ("ranks: a gradient that comes twice is sent at once", "GradientAverage.during_backward", "int(A) == 1", "True",
         "distributed/test_ranks.py::different_parameters"),
    ],
    "data.loader": [
        ("ranks: each evaluates all batches", "ImageLoader._local_batches", "A[B :: C]", "A",
         "distributed/test_distributed.py::ranks_evaluate"),
        ("order: the same in every epoch", "ImageLoader._batches", "make_generator(A, 'order', B)",
         "make_generator(A, 'order', 0)", "data/test_loader.py::order_is"),
        ("order: a resumed epoch starts again", "ImageLoader._local_batches", "range(start, A)", "range(0, A)",
         "data/test_loader.py::epoch_from_a_start"),
        ("augment: draws by the place in the batch", "ImageLoader._batches", "table[A]", "table[: len(A)]",
         "data/test_loader.py::augmentation_of_an_image"),
        ("mixing: batches are counted from the resumed one", "ImageLoader._batches", "enumerate(A, start)",
         "enumerate(A, 0)", "data/augment/test_mixing.py::loader_mixes"),
    ],
    "geometry.mean_loss": [
        ("geometry: chunks count equally", "MeanLoss.hessian_products", "len(A) / B", "1 / len(self._chunks)",
         "geometry/test_geometry.py::loss_gradient_and_hessian"),
        ("geometry: batch norm by the running statistics", "MeanLoss._use", "layer.train()", "pass",
         "geometry/test_geometry.py::loss_gradient_and_hessian"),
        ("geometry: weight decay has no curvature", "MeanLoss.hessian_products", "alpha=self._weight_decay", "alpha=0",
         "geometry/test_geometry.py::loss_gradient_and_hessian"),
        ("geometry: dropout stays", "MeanLoss._use", "model.eval()", "pass",
         "geometry/test_geometry.py::loss_gradient_and_hessian"),
        ("geometry: the mean is the sum", "MeanLoss.hessian_products", "len(A) / B", "len(A)",
         "geometry/test_geometry.py::linear_model_with_squared_loss"),
        ("geometry: the loss is rounded to float32", "MeanLoss._score", "logits.double()", "logits",
         "geometry/test_sharpness.py::are_not_those_of_rounding"),
        ("geometry: a random loss is measured", "MeanLoss.require_repeatable", "REPEATABLE * A", "100 * A",
         "geometry/test_geometry.py::random_in_evaluation_mode"),
        ("geometry: statistics are no state", "MeanLoss.fixed_state", "self._batchnorm == 'eval'", "False",
         "geometry/test_geometry.py::fixed_state"),
        ("geometry: statistics of the last chunk", "MeanLoss._estimate_statistics", "layer.reset_running_stats()",
         "pass", "geometry/test_geometry.py::reestimated"),
        ("geometry: instance norm by the last chunk", "MeanLoss._estimate_statistics", "1 / A", "1.0",
         "geometry/test_geometry.py::means_over_chunks"),
    ],
    "geometry.lanczos": [
        ("lanczos: not orthogonalised against the whole basis", "quadrature",
         "_orthogonalise(product(A), B)", "_orthogonalise(product(A), basis[max(count - 2, 0) : count])",
         "geometry/test_geometry.py::orthogonal_in_float32 or quadrature_is_exact"),
        ("lanczos: a restart forgets its basis", "_Krylov.restart", "self._projected[A, B] = C", "pass",
         "geometry/test_geometry.py::repeated_eigenvalues"),
        ("lanczos: copies of an eigenvalue are missed", "_are_complete", "is_replaced and A", "True",
         "geometry/test_geometry.py::repeated_eigenvalues"),
        ("lanczos: stops at the null space", "largest_eigenvalues", "krylov.count < k or A", "krylov.count < k",
         "geometry/test_geometry.py::null_space"),
        ("lanczos: symmetric products of one vector only", "asymmetry", "(first, second)", "(second, first)",
         "geometry/test_geometry.py::asymmetry_is"),
        ("lanczos: copies that one start does not see", "largest_eigenvalues", "A == 1 or B or C", "True",
         "geometry/test_geometry.py::one_start_do_not_see"),
        ("lanczos: any value beside an outlier", "_are_complete", "max(min(A, B), C)", "max(A, C)",
         "geometry/test_geometry.py::exact_to_a_few_percent"),
        ("lanczos: the smallest eigenvalues", "largest_eigenvalues", "range(krylov.count - 1, A, -1)",
         "range(min(k, krylov.count))",
         "geometry/test_geometry.py::dense_hessian"),
        ("lanczos: the weights are not squared", "quadrature", "A.square()", "A.abs()",
         "geometry/test_geometry.py::quadrature_is_exact"),
    ],
    "geometry.trace": [
        ("trace: the range is counted twice", "estimate_trace", "A - B @ basis", "A",
         "geometry/test_geometry.py::hutch_is_unbiased"),
        ("trace: the standard error of one term", "estimate_trace", "A.std() / B", "A.std()",
         "geometry/test_geometry.py::hutch_is_unbiased"),
    ],
    "geometry.density": [
        ("density: probes are summed", "density_of_probes", "A / len(parts)", "A",
         "geometry/test_geometry.py::dense_hessian"),
    ],
    "geometry.sharpness": [
        ("sharpness: leaves the ball", "_ascend", "rho / max(A, B)", "1.0",
         "geometry/test_sharpness.py::trust_region"),
        ("sharpness: descends", "_ascend", "u + direction * A", "u - direction * A",
         "geometry/test_sharpness.py::trust_region"),
        ("sharpness: the gradient is not scaled by |w|", "worst_case", "c * at_w", "at_w",
         "geometry/test_sharpness.py::adaptive_worst_case_of_a_linear"),
        ("sharpness: adaptive by the length of w", "_ascend", "c * grad", "grad",
         "geometry/test_sharpness.py::rescaling"),
        ("sharpness: the average has another length", "average_case", "rho / A", "rho",
         "geometry/test_sharpness.py::average_case"),
        ("sharpness: a NaN is no maximum", "worst_case", "all(map(math.isfinite, A))", "True",
         "geometry/test_sharpness.py::not_finite_in_the_ball"),
        ("m-sharpness: all examples", "m_sharpness", "loss.part(A, B)", "loss",
         "geometry/test_sharpness.py::m_sharpness"),
    ],
    "analysis.correlation": [
        ("correlation: orders that are as good do not count", "permutation_test", "found >= A", "found > A + 2e-12",
         "analysis/test_correlation.py::all_orders"),
        ("correlation: one-sided", "permutation_test", "np.abs(x[A] @ y)", "x[A] @ y",
         "analysis/test_correlation.py::all_orders"),
        ("correlation: seeds count separately", "correlate", "numbers.setdefault(A, len(numbers))",
         "len(numbers) + numbers.setdefault(len(numbers), 0)", "analysis/test_correlation.py::in_the_seed_count_once"),
        ("correlation: no correction for the number of measures", "_correct", "A * (B - number)", "A",
         "analysis/test_correlation.py::corrected_for_their_number"),
    ],
    "analysis.landscape": [
        ("path: more points on one side", "path_coordinates", "inside += A", "pass",
         "analysis/test_landscape.py::path_contains_both"),
        ("plane: the checkpoints lie between its points", "plane_coordinates", "A[B], C[B] = D, True", "pass",
         "analysis/test_landscape.py::plane_contain"),
    ],
    "geometry.directions": [
        ("directions: by layer instead of filter", "draw_filter_normalised_direction",
         "rows.norm(dim=1) / drawn.norm(dim=1)", "(rows.norm() / drawn.norm()).expand(len(rows))",
         "geometry/test_sharpness.py::filters_of_a_direction"),
    ],
    "training.telemetry": [
        ("telemetry: a step that is left out is measured never", "Telemetry.measures_step", "A > B",
         "step % self.every == 0", "training/test_telemetry.py::stays_due"),
        ("telemetry: the cosine of g with itself", "ObservedMethod.combine", "(first, final)", "(first, first)",
         "training/test_telemetry.py::by_hand"),
        ("telemetry: norms instead of squares", "ObservedMethod.accumulate", "A.square()", "A.abs()",
         "training/test_telemetry.py::shares_of_modules"),
        ("telemetry: the method's own combination is lost", "ObservedMethod.accumulate", "self._method.accumulate(A)",
         "super().accumulate(A)", "training/test_telemetry.py::same_bits and accumulate"),
    ],
    "data.normalisation": [
        ("normalisation: the variance instead of its root", "Normalisation.from_counts", "variance**0.5", "variance",
         "data/test_loader.py::normalisation_equals"),
    ],
    "training.metrics": [
        ("early stopping: an equal accuracy is better", "is_better", "value > other", "value >= other",
         "training/test_early_stopping.py::counted_since"),
        ("early stopping: the highest likelihood loss is the best", "is_better", "value < other", "value > other",
         "training/test_early_stopping.py::lowest_likelihood"),
        ("ranks: norms count once a rank", "TrainMeter.add", "A.grad_norm * B", "A.grad_norm",
         "distributed/test_distributed.py::sums_of_ranks"),
        ("metrics: steps with one pass have sharpness 0", "TrainMeter.add", "A.gradient > 1", "A.gradient > 0",
         "training/test_metrics.py::sharpness_is_that"),
        ("metrics: of equal logits none is first", "_sum_metrics", "A & is_lower_class", "A",
         "training/test_metrics.py::top_five"),
        ("metrics: a sixth class counts", "_sum_metrics", "A < 5", "A <= 5",
         "training/test_metrics.py::top_five"),
        ("metrics: calibration bins open on the right", "_sum_bins", "A.ceil()", "(A + 1).floor()",
         "training/test_metrics.py::closed_on_the_right"),
        ("metrics: classes in columns", "count_pairs", "A * B + C", "C * B + A",
         "training/test_metrics.py::true_classes_in_rows"),
        ("metrics: the wrong labels count as clean", "label_noise_metrics", "labels != clean_labels",
         "labels == clean_labels", "commands/test_evaluate.py::training_set_is_evaluated"),
        ("metrics: non-finite steps are counted in", "TrainMeter.add", "A.masked_fill(...)", "A",
         "training/test_metrics.py::nonfinite_step"),
    ],
    "utils.seeding": [
        ("seeds: keys run together", "derive_seed", "repr(A)", "str(sum(map(hash, A)))", "utils/test_seeding.py::keys"),
        ("seeds: the global stream moves", "make_generator", "torch.Generator(A)", "torch.default_generator",
         "utils/test_seeding.py::leaves_the_global"),
        ("seeds: NumPy's is left out", "seed_everything", "np.random.seed(A)", "pass",
         "utils/test_seeding.py::all_three"),
        ("network: numbers of Python are not replayed", "RngState.restore", "random.setstate(A)", "pass",
         "sam/test_awkward_networks.py::every_part_alone"),
        ("network: numbers of NumPy are not replayed", "RngState.restore", "np.random.set_state(A)", "pass",
         "sam/test_awkward_networks.py::every_part_alone"),
        ("network: numbers of a generator in a list are not replayed", "_list_contents", "list(value)", "[]",
         "sam/test_awkward_networks.py::every_part_alone and listed"),
        ("seeds: nothing is replayed", "RngState.restore", "torch.set_rng_state(A)", "pass",
         "utils/test_seeding.py::replay"),
    ],
    "data.augment.augmentation": [
        ("augment: the same in every epoch", "draw_table", "make_generator(A, 'augmentation', B)",
         "make_generator(A, 'augmentation', 0)", "data/augment/test_augmentation.py::other_seeds_and_epochs"),
        ("augment: padding repeats the edge", "_reflected_index", "2 * (A - 1)", "2 * A - 1",
         "data/augment/test_augmentation.py::unfold_crops_equal"),
        ("augment: one crop is never drawn", "crop_and_flip", "2 * A + 1", "2 * A",
         "data/augment/test_augmentation.py::crop_and_flip"),
        ("augment: a rectangle that does not fit is kept", "erase_rectangle", "A.argmax(...)", "A[:, :1] * 0",
         "data/augment/test_augmentation.py::erase_equals"),
    ],
    "data.augment.mixing": [
        ("mixing: shares are swapped", "mix_batch", "torch.lerp(A, B, lam)", "torch.lerp(B, A, lam)",
         "data/augment/test_mixing.py::mixup_is_exact", 0),
        ("mixing: labels by lambda, not by the area", "mix_batch", "lam = 1 - A", "pass",
         "data/augment/test_mixing.py::cutmix_is_exact"),
    ],
    "training.loop": [
        ("early stopping: the best does not start the count anew", "_record_evaluation",
         "progress.evaluations_since_best = 0", "pass", "training/test_early_stopping.py::counted_since"),
        ("mixing: the loss takes the labels", "_train_step", "A.targets", "A.labels",
         "data/augment/test_mixing.py::trainer_learns"),
        ("loop: the number of a step within its epoch", "_train_step", "run.step(A, B, progress.step)",
         "run.step(A, B, progress.batch)", "sam/test_random_direction.py::trainer"),
        ("loop: the last epoch is not evaluated", "_end_epoch", "A or B % C == 0", "B % C == 0",
         "training/test_loop.py::eval_every"),
        ("telemetry: every step is measured", "_train_step", "progress.measured_step = A", "pass",
         "training/test_telemetry.py::same_bits"),
        ("resume: the place in the epoch", "_train_epoch", "A.epoch(B, start=C)", "A.epoch(B)",
         "training/test_resume.py::stopped_after_any_step and direction"),
        ("resume: sums since the last row", "_train_epoch", "A.window_sums = B", "pass",
         "training/test_resume.py::stopped_after_any_step and direction"),
    ],
    "data.augment.policy": [
        ("policy: the same in every epoch", "apply_policy", "derive_seed(A, B, C, D)", "derive_seed(A, B, D)",
         "data/augment/test_policy.py::does_not_depend_on_its_batch"),
        ("policy: the global stream moves", "apply_policy", "with torch.random.fork_rng(devices=[]): A", "A",
         "data/augment/test_policy.py::does_not_depend_on_its_batch"),
    ],
    "data.noise": [
        ("noise: the true class is drawn", "symmetric", "torch.randint(1, A, B, generator=C)",
         "torch.randint(0, A, B, generator=C)", "data/test_noise.py::true_class_is_never"),
        ("noise: every example has the mean rate", "instance", "A < rates[B]", "A < rate",
         "data/test_noise.py::instance_noise_changes"),
        ("noise: superclasses go the other way", "asymmetric", "A.roll(-1)", "A.roll(1)",
         "data/test_noise.py::superclass"),
        ("noise: human labels by place", "human", "A[B.argsort(stable=True)] = C", "A[:] = C",
         "data/datasets/test_cifar.py::published_order"),
    ],
    "data.splits": [
        ("noise: on held-out images", "hold_out", "A.with_labels(A.clean_labels)", "A",
         "data/datasets/test_cifar.py::human_labels_stay"),
        ("splits: the part depends on chance", "subsample", "make_generator(A, B)", "make_generator(torch.seed(), B)",
         "data/test_splits.py::subsamples_are"),
        ("splits: training images are held out", "hold_out", "A[num_held_out:]", "A[num_held_out - 1 :]",
         "data/test_splits.py::hold_out_is_exact"),
    ],
    "data.datasets.svhn": [
        ("svhn: ten stays ten", "", "A % 10", "A - 1", "data/datasets/test_svhn.py::images_and_digits"),
    ],
    "training.schedules": [
        ("schedule: cosine over twice the steps", "cosine", "math.pi * A", "math.pi * A / 2",
         "training/test_schedules.py::cosine"),
        ("schedule: warm-up starts from 0", "_add_warmup", "A + 1", "A", "training/test_schedules.py::warmup_rises"),
        ("schedule: warm-up takes no steps from the rest", "_add_warmup", "A - B", "A",
         "training/test_schedules.py::remaining_steps", 0),
        ("schedule: a milestone comes one step late", "step", "A >= B", "A > B",
         "training/test_schedules.py::exactly_at"),
        ("schedule: rho does not follow its own", "build_rho", "A * B(C)", "A", "training/test_loop.py::rho_schedules"),
    ],
    "models.pretrained": [
        ("fine-tuning: a head half loaded", "load_weights", "A.startswith(B)", "False",
         "models/test_models_finetune.py::head_is_loaded", 2),
    ],
    "models.frozen_batchnorm": [
        ("fine-tuning: statistics are not frozen", "", "A.train = B", "A.train()",
         "models/test_models_finetune.py::frozen_statistics"),
    ],
    "training.compiler_free_optimizers": [
        ("optimizers: the update is recorded", "", "torch.set_grad_enabled(A)", "torch.enable_grad()",
         "training/test_compiler_free_optimizers.py::gradients"),
    ],
    "training.state": [
        ("early stopping: the run has its last weights", "Run.final_metrics", "self.patience is None", "True",
         "training/test_early_stopping.py::ends_by_the_rule"),
        ("early stopping: the test set chooses", "Run.selected_by", "self.metric",
         "self.metric.replace('validation', 'test')",
         "training/test_early_stopping.py::another_metric_ends"),
        ("early stopping: one evaluation late", "Run.stops_early", "A >= self.patience", "A > self.patience",
         "training/test_early_stopping.py::ends_by_the_rule"),
        ("resume: the generator", "restore_state", "A.restore(B, C)", "pass",
         "training/test_resume.py::stopped_after_any_step and direction"),
        ("resume: the optimizer", "restore_state", "load_full_optimizer_state(...)", "pass",
         "training/test_resume.py::stopped_after_any_step and direction"),
        ("resume: the method's state", "restore_state", "run.step.method.load_state_dict(A)", "pass",
         "training/test_method_state.py::resumed"),
    ],
    "training.checkpoints": [
        ("resume: the oldest checkpoint", "CheckpointFolder._list_manifests", "reverse=True", "reverse=False",
         "training/test_checkpoints.py::highest_step"),
        ("resume: a damaged checkpoint is used", "CheckpointFolder._load_first_intact", "fault is None", "True",
         "training/test_checkpoints.py::single_bit_flips"),
    ],
    "sweeps.jobs": [
        ("sweep: a setting without effect names a job", "_shared_words", "all(A)", "True",
         "sweeps/test_jobs.py::equal_jobs_are_one"),
        ("sweep: a job that exists gets another folder", "plan_jobs", "A.name if B else C", "C",
         "sweeps/test_jobs.py::plan_is_lost"),
        ("sweep: the cost ignores passes", "job_cost", "A.epochs * B", "A.epochs",
         "sweeps/test_jobs.py::cost_of_a_job"),
    ],
    "runs.plan": [
        ("sweep: two calls overwrite each other's plan", "_lock", "fcntl.flock(A, B)", "pass",
         "sweeps/test_jobs.py::same_time"),
        ("sweep: the last job decides the precision", "agree_on_precision", "device_type not in A", "True",
         "sweeps/test_jobs.py::first_job_of_a_sweep"),
    ],
    "sweeps.outcomes": [
        ("sweep: a job that failed before this call counts", "read_outcome", "is_own or A", "True",
         "sweeps/test_sweep.py::outcome_of_a_job"),
        ("sweep: a job that another call has stopped counts", "read_outcome", "A if is_own else B", "A",
         "sweeps/test_sweep.py::outcome_of_a_job"),
    ],
    "sweeps.claims": [
        ("sweep: one claim for all jobs", "claim_all", "int(A, 16)", "0", "sweeps/test_pool.py::claim_is_held"),
    ],
    "sweeps.progress": [
        ("progress: jobs at once do not share the work", "SweepProgress.seconds_left", "[A] * workers", "[A]",
         "sweeps/test_progress.py::share_the_remaining"),
        ("progress: epochs of earlier calls count", "JobState.paid_cost", "A - B", "A",
         "sweeps/test_progress.py::only_the_epochs"),
        ("progress: an epoch counts before it ends", "_read_progress", "A - B", "A",
         "sweeps/test_progress.py::evaluated", 2),
    ],
    "models.layers.pooling": [
        ("pooling: a mean instead of a pixel", "every_nth_pixel", "F.avg_pool2d(A, 1, n)", "F.avg_pool2d(A, n, n)",
         "models/test_pooling.py::those_of_torch"),
        ("pooling: gradients in another layout", "mean_over_pixels", "A.stride(1) == 1", "False",
         "models/test_pooling.py::those_of_torch"),
    ],
    "models.layers.float32_depthwise": [
        ("depthwise: all grouped convolutions in float32", "compute_depthwise_in_float32", "1 < A == B", "1 < A",
         "models/test_float32_depthwise.py::only_depthwise"),
    ],
    "reports.aggregate": [
        ("reports: the difference has the wrong sign", "paired_difference", "A.get_group(B) - C", "C - A.get_group(B)",
         "reports/test_comparison.py::paired_t_test", 0),
        ("reports: the interval of a normal distribution", "student_t", "stdtrit(A, B)", "A * 0 + 1.96",
         "reports/test_comparison.py::paired_t_test"),
    ],
    "reports.comparison": [
        ("reports: a baseline with other settings", "find_equal_bases", "A not in ignored", "False",
         "reports/test_comparison.py::same_settings"),
        ("reports: a baseline of another cost", "find_baselines", "A <= COST_TOLERANCE", "True",
         "reports/test_comparison.py::trained_for_longer"),
        ("reports: the missing baseline is as long as the others", "_find_length", "round(A * B)", "round(A)",
         "reports/test_comparison.py::equal_cost_is_named"),
    ],
    "reports.selection": [
        ("reports: the test set chooses", "choose", "held_out if A else B", "B",
         "reports/test_selection.py::largest_mean"),
        ("reports: a value with few seeds is chosen", "average_over_shared_seeds", "A[B] == len(shared)", "A[B] > 0",
         "reports/test_selection.py::lacks_seeds"),
    ],
    "inference.predictions": [
        ("ensemble: the sum of the probabilities", "mean_log_probabilities", "A - math.log(B)", "A",
         "inference/test_predictions.py::mean_is_of_probabilities"),
        ("ensemble: logits are averaged", "mean_log_probabilities", "A.double().log_softmax(1)", "A.double()",
         "inference/test_predictions.py::mean_is_of_probabilities"),
    ],
    "inference.image_files": [
        ("grey: red and blue exchanged", "make_reader", "GREY[:, None, None]", "GREY.flip(0)[:, None, None]",
         "commands/test_predict.py::grey_levels"),
    ],
    "inference.suspects": [
        ("suspects: equal scores are in some order", "average_precision", "A.diff() != 0", "A.diff() == A.diff()",
         "inference/test_suspects.py::scikit_learn"),
        ("suspects: precision of one image too many", "average_precision", "A / (B + 1)", "A / (B + 2)",
         "inference/test_suspects.py::scikit_learn"),
        ("suspects: the most certain label first", "rank_examples", "A.argsort(stable=True)",
         "A.argsort(stable=True, descending=True)", "commands/test_suspects.py::ranked_by"),
    ],
    "inference.export": [
        ("export: NaN is within the tolerance", "export_network", "not A <= B", "A > B",
         "commands/test_export.py::differs"),
    ],
    "runs.logging.tensorboard": [
        ("TensorBoard: hparams of training", "TensorboardLogger.hparams", "A.startswith(EVALUATED_SETS)", "True",
         "runs/test_logging.py::hparams_are_in"),
    ],
    "runs.dry_run": [
        ("plan: a backward pass is two forward passes", "_describe_run", "A * B + C * D", "A * B + C * 2 * B",
         "runs/test_flops.py::what_is_trained"),
    ],
    "runs.lock": [
        ("sweep: a run that was killed is still running", "is_locked", "return False", "return True",
         "sweeps/test_sweep.py::killed_run"),
    ],
}
# fmt: on
pytestmark = pytest.mark.mutant
FAST = ("-m", "not slow and not gpu and not dist")
CASES = {rule: (module, *mutant) for module, mutants in MUTANTS.items() for rule, *mutant in mutants}
FOLDERS = sorted({case[4].split("/")[0] for case in CASES.values()})


def selection(tests):
    """Return pytest's arguments for ``file::-k expression``."""
    file, _, names = tests.partition("::")
    return [file, *FAST, "-k", names]


@pytest.mark.parametrize("rule", CASES)
def test_the_mutant_is_killed(rule):
    home, function, old, new, tests, *place = CASES[rule]
    file, module = mutated(f"sam_runner.{home}.{function}".rstrip("."), old, new, *place)
    code = run_tests(selection(tests), file, module)
    said = {0: "the mutant survives", 5: f"no test is selected by {tests}"}.get(code, f"pytest ended with code {code}")
    assert code == 1, said


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_unchanged_package_passes_in_the_same_way(folder):
    chosen = [selection(case[4]) for case in CASES.values() if case[4].startswith(f"{folder}/")]
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
