"""What a step needs from a network (buffers, trained parameters, memory of gradients), and joint passes of networks."""
