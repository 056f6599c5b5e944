"""The geometry of a loss around some weights: Hessian-vector products, eigenvalues, trace, density, sharpness, slices.

`mean_loss` is the loss of fixed examples as a function of one flat vector of weights. Of any symmetric operator,
`lanczos` computes the largest eigenvalues, `trace` the trace (Hutch++), and `density` the density of all eigenvalues
(stochastic Lanczos quadrature). `sharpness` computes the rise of the loss in a ball around the weights, `directions`
the directions of slices. Runs, files and plots are in `analysis`.

May import: utils, distributed, sam.
"""
