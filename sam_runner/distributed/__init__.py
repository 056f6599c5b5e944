"""Training one run with several processes that torchrun starts: communication, process groups, sharded weights.

`context` has the collectives that the rest of the program uses. `torchrun` joins and leaves the process group.
`gradient_average` averages gradients over the ranks, `sharding` splits the weights over the processes (FSDP2). How
ranks share batches is in `data`.

May import: utils.
"""
