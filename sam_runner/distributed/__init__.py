"""Training one run with several processes that torchrun starts: communication, process groups, sharded weights.

`context` has the collectives that the rest of the program uses. `torchrun` joins and leaves the process group.
`sharding` splits the weights over the processes (FSDP2). How a step averages gradients over ranks is in `sam`, how
ranks share batches in `data`.

May import: utils.
"""
