"""Settings of the group ``optimizer``: the method (SAM, a variant, or none) and its base optimizer."""

from sam_runner.config.optimizer import around, method, perturbation

METHODS: tuple[type[method.OptimizerConfig], ...] = (
    method.OptimizerConfig,
    method.NoMethodConfig,
    perturbation.SamConfig,
    perturbation.AsamConfig,
    perturbation.FisherSamConfig,
    perturbation.FriendlySamConfig,
    perturbation.SamOnConfig,
    perturbation.LayerwiseSamConfig,
    perturbation.MomentumSamConfig,
    perturbation.EsamConfig,
    around.GsamConfig,
    around.GradientNormConfig,
    around.WsamConfig,
    around.LookSamConfig,
    around.IntervalConfig,
    around.RandomSamConfig,
    around.AeSamConfig,
    around.LateConfig,
    method.OwnMethodConfig,
)
