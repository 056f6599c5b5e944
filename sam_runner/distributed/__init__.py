"""Training one run with several processes that torchrun starts: communication, process groups, sharded weights.

`context` has the collectives that the rest of the program uses. `torchrun` joins and leaves the process group.
`sharding` splits the weights over the processes (FSDP2), and `gradient_average` averages gradients over them. How ranks
share batches is in `data`.

May import: utils.
"""
