"""Training one run with several processes that torchrun starts: communication, process groups, sharded weights.

`context` has the `DistributedContext` that the rest of the program uses; `SINGLE_PROCESS` is the one of a run without
torchrun, whose collectives return their argument. `torchrun` joins and leaves the process group. `sharding` splits the
weights over the processes (FSDP2). How a step averages gradients over ranks is in `sam`, how ranks share batches in
`data`.

May import: utils.
"""
